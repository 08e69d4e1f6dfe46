"""A whole job: who may work on the run, where, and the stages in order."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mnist_ray import __version__
from mnist_ray.config import JobSpec, parse_spec, refused_changes
from mnist_ray.errors import SpecError, TakenOverError
from mnist_ray.pipeline.signals import heed_sigterm, stoppable
from mnist_ray.pipeline.stages import Listener, Stages, choice_is_current, search_is_open
from mnist_ray.ray_backend.cluster import address_in_use, connected, local_capacity
from mnist_ray.record.disk_use import bytes_needed
from mnist_ray.record.exports import views_are_current, write_views
from mnist_ray.record.lease import has_ended, owned
from mnist_ray.record.rundir import RECORD_FORMAT, RunDir
from mnist_ray.storage.disk_space import check_space
from mnist_ray.storage.files import remove_leftovers, storage_path


@dataclass(frozen=True)
class Site:
    """Where a job runs: none of it defines its results."""

    address: str | None = None  # of a Ray cluster; without it this machine alone, or the job's own cluster
    temporary_folder: Path | None = None  # for Ray's own files, where a cluster is started
    verbose: bool = False


HERE, SILENT = Site(), Listener()


def run_job(spec: JobSpec, site: Site = HERE, listener: Listener = SILENT) -> RunDir:
    """Everything: search, confirm, choose, retrain, test, tables. A finished run is returned as it is.

    Raises SpecError, DataError, TrainingFailedError, InterruptedRunError, OwnedByAnotherError, TakenOverError,
    CorruptFileError, OSError.
    """
    return _run_stages(spec, site, listener, until="tested", with_search=True)


def search_job(spec: JobSpec, site: Site = HERE, listener: Listener = SILENT) -> RunDir:
    """Only the search, its confirmation and the choice; `run_job` goes on from there. Raises as `run_job`."""
    return _run_stages(spec, site, listener, until="chosen", with_search=True)


def train_job(spec: JobSpec, site: Site = HERE, listener: Listener = SILENT) -> RunDir:
    """Train and test the spec's recipe, without a search. Raises as `run_job`."""
    return _run_stages(spec, site, listener, until="tested", with_search=False)


def open_run(spec: JobSpec) -> RunDir:
    """The run's folder, checked to be this spec's or new. Raises SpecError."""
    run = RunDir(storage_path(spec.storage) / spec.name)
    _check_release(run)
    started = run.stage("started")
    if started is None:
        return run
    recorded = parse_spec(started["spec"], str(run.path))
    remedy = "give the run another name (--name), or undo the change"
    changes = refused_changes(recorded, spec)
    if changes:
        raise SpecError("\n".join([f"{run.path} is the run of another spec: {remedy}", *changes]))
    unsealed = run.stage("unsealed")
    if unsealed and spec.search.num_trials > recorded.search.num_trials:
        raise SpecError(
            f"search.num_trials: {recorded.search.num_trials} in the run, {spec.search.num_trials} now, but its test "
            f"split was unsealed at {unsealed['at']}, and a choice made after that proves nothing: {remedy}"
        )
    return run


def _check_release(run: RunDir) -> None:
    owner = run.owner
    if owner and owner["format"] != RECORD_FORMAT:
        raise SpecError(
            f"{run.path} was begun by mnist_ray {owner['version']}, whose record mnist_ray {__version__} cannot go on "
            f"with (format {owner['format']}, here {RECORD_FORMAT}): finish it with that release, or give the run "
            "another name (--name)"
        )


def is_done(run: RunDir, spec: JobSpec, until: str = "tested") -> bool:
    """Whether a run has nothing left to do up to and including a stage."""
    if until == "chosen":
        return not search_is_open(run, spec) and choice_is_current(run)
    return run.stage("tested") is not None


def _run_stages(spec: JobSpec, site: Site, listener: Listener, until: str, with_search: bool) -> RunDir:
    run = open_run(spec)
    if run.exists and is_done(run, spec, until):
        listener.note(f"{run.path} is finished: nothing to do")
        if has_ended(run):
            _finish_views(run)
        return run
    _check_early(spec, site, with_search)
    check_space(run.path, bytes_needed(spec))
    with stoppable() as stop:
        try:
            with owned(run, listener.note, stop):
                _work_on(run, spec, site, listener, until, with_search)
        except (KeyboardInterrupt, OSError):
            if run.was_taken_over():
                raise TakenOverError(f"{run.path} was taken over by another process") from None
            raise
    return run


def _finish_views(run: RunDir) -> None:
    """What is left to do where the one who finished the run was killed while writing the views."""
    remove_leftovers(run.path)
    if not views_are_current(run):
        write_views(run)


def _work_on(run: RunDir, spec: JobSpec, site: Site, listener: Listener, until: str, with_search: bool) -> None:
    listener.note(f"results go to {run.path}")
    shutil.rmtree(run.ray_state, ignore_errors=True)  # of sessions before this one
    run.remove_spent_checkpoints()
    stages = Stages(spec, run, listener)
    with stages.timed("data") as data_facts:
        stages.load_data()
    with connected(site.address, site.temporary_folder, site.verbose) as capacity:
        heed_sigterm()  # Ray has just taken the signal for itself
        if address_in_use(site.address) != "local":
            from mnist_ray.ray_backend.shared_storage import check_shared

            check_shared(run.path)
        num_concurrent = capacity.num_concurrent_trials(spec) if with_search else 0
        capacity.check_retraining(spec)
        stages.record_start(capacity, data_facts["elapsed_s"])
        try:
            if with_search:
                stages.search(num_concurrent)
                stages.confirm(num_concurrent)
            stages.choose(with_search)
            if until == "tested":
                stages.retrain()
                stages.test()
        except TakenOverError:
            raise  # its new owner makes the views
        except BaseException:
            write_views(run)
            raise
        write_views(run)
    shutil.rmtree(run.ray_state, ignore_errors=True)  # of no use to anybody any more


def _check_early(spec: JobSpec, site: Site, with_search: bool) -> None:
    """Say within a second what a new cluster of this machine could never run; a joined cluster is asked later."""
    if address_in_use(site.address) != "local" or spec.search.gpus_per_trial or spec.retrain.gpus_per_worker:
        return
    capacity = local_capacity()
    if with_search:
        capacity.num_concurrent_trials(spec)
    capacity.check_retraining(spec)
