"""A whole job: who may work on the run, and the stages in order."""

import logging
import shutil
from collections.abc import Sequence
from typing import Literal

from mnist_ray import __version__
from mnist_ray.callbacks import Callback, CallbackList
from mnist_ray.config import JobSpec, refused_changes
from mnist_ray.errors import SpecError, TakenOverError
from mnist_ray.pipeline.backend import Backend
from mnist_ray.pipeline.signals import heed_sigterm, stoppable
from mnist_ray.pipeline.spent_checkpoints import spent_checkpoints_removed
from mnist_ray.pipeline.stages import Stages
from mnist_ray.record.disk_use import bytes_needed
from mnist_ray.record.events import RECORD_FORMAT
from mnist_ray.record.exports import exports_are_current, write_exports
from mnist_ray.record.lease import has_ended, owned
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.disk_space import check_space
from mnist_ray.storage.files import children, remove_leftovers, remove_tree, storage_path
from mnist_ray.trackers.processes import COMPLETE_S, FINISHED_S, check_trackers, tracked

logger = logging.getLogger(__name__)

Until = Literal["selected", "tested"]


def run_stages(
    spec: JobSpec, backend: Backend, callbacks: Sequence[Callback], until: Until, with_search: bool
) -> RunDir:
    """Run the stages that a run still lacks, up to `until`; a finished run is returned as it is.

    Raises SpecError, DataError, TrainingFailedError, InterruptedRunError, OwnedByAnotherError, TakenOverError,
    CorruptFileError, OSError.
    """
    run = open_run(spec)
    check_trackers(spec, run)
    if run.exists and is_done(run.state, spec, until):
        logger.info("%s is finished: nothing to do", run)
        if has_ended(run):  # the process that finished the run may have been killed in the export
            remove_leftovers(run.path)
            if not exports_are_current(run):
                write_exports(run.path)
            with tracked(run, spec, FINISHED_S):  # whoever asks for a tracker now gets the whole run there
                pass
        return run
    if spec.retrain is None and not with_search:
        raise SpecError(
            "retrain: null tests the models of the final round, which 'mnist-ray train' does not have: leave "
            "'retrain: null' out of the spec, or use 'mnist-ray run'"
        )
    backend.check_early(spec, with_search)
    check_space(run.path, bytes_needed(spec))
    with stoppable() as stop, owned(run, when_lost=stop) as writer, tracked(run, spec, COMPLETE_S):
        try:
            _work_on(writer, spec, backend, CallbackList(callbacks), until, with_search)
        except (KeyboardInterrupt, OSError):
            if RunDir(run.path).state.fencing_token > writer.fencing_token:
                raise TakenOverError(f"{run} was taken over by another process") from None
            raise
    return run


def open_run(spec: JobSpec) -> RunDir:
    """Return the run's folder, checked to be this spec's or new. Raises SpecError."""
    run = RunDir(storage_path(spec.storage) / spec.name)
    state = run.state
    owner = state.session.owner if state.session else None
    if owner and (owner.format != RECORD_FORMAT or state.unknown_kinds):
        raise SpecError(
            f"{run} was begun by mnist_ray {owner.version}, whose record mnist_ray {__version__} cannot "
            f"continue (format {owner.format}, not {RECORD_FORMAT}): finish it with that release, or give the run "
            "another name (--name)"
        )
    if not run.exists and (found := run.paths.foreign_file()):
        raise SpecError(
            f"{run} is not the folder of a run and contains {found.name}, which a run would overwrite: give the run "
            "another name (--name), or move that file"
        )
    if state.started is None:
        return run
    recorded = state.started.spec
    remedy = "give the run another name (--name), or undo the change"
    changes = refused_changes(recorded, spec)
    if changes:
        raise SpecError("\n".join([f"{run} was begun with another spec: {remedy}", *changes]))
    if state.test_opened and spec.search.num_trials > recorded.search.num_trials:
        raise SpecError(
            f"search.num_trials: {recorded.search.num_trials} in the run, {spec.search.num_trials} now, but its test "
            f"split was opened at {state.test_opened.at}, and a selection after that would be biased by the test: "
            f"{remedy}"
        )
    return run


def is_done(state: RunState, spec: JobSpec, until: Until = "tested") -> bool:
    """Report whether a run has nothing left to do up to and including a stage."""
    if until == "selected":
        return not state.search_is_open(spec) and state.selection_is_current
    return state.tested is not None


def _work_on(
    writer: RunWriter, spec: JobSpec, backend: Backend, callbacks: CallbackList, until: Until, with_search: bool
) -> None:
    run = writer.run
    logger.info("results go to %s", run)
    shutil.rmtree(run.paths.ray_state, ignore_errors=True)  # of sessions before this one
    _remove_spent_checkpoints(run)
    stages = Stages(spec, writer, callbacks)
    # A backend starts processes ahead for the stages that follow.
    foreseen = spec if until == "tested" else spec.model_copy(update={"retrain": None})
    with spent_checkpoints_removed(writer), backend.connect(foreseen, run) as connection:
        heed_sigterm()  # Ray takes the signal for itself
        num_concurrent = connection.num_concurrent_trials(spec) if with_search else 0
        connection.check_retraining(spec)
        if with_search and not is_done(run.state, spec, "selected"):
            connection.prepare("search")
        elif not run.state.retraining_is_current:
            connection.prepare("retrain")
        stages.record_start(backend, connection)
        try:
            if with_search:
                stages.search(connection, num_concurrent)
                stages.final(connection, num_concurrent)
            stages.select(with_search)
            if until == "tested":
                stages.retrain(connection)
                stages.test()
        except TakenOverError:
            raise  # its new owner exports the files
        except BaseException:
            _publish_what_is_left(writer)
            write_exports(run.path)
            raise
        write_exports(run.path)
    shutil.rmtree(run.paths.ray_state, ignore_errors=True)  # nothing reads it any more


def _publish_what_is_left(writer: RunWriter) -> None:
    """Publish what was recorded before an interruption, so that the exported files show it."""
    try:
        writer.flush()
    except (OSError, TakenOverError) as error:
        logger.debug("not everything that was recorded could be published: %s", error)


def _remove_spent_checkpoints(run: RunDir) -> None:
    """Remove the checkpoints of trainings that have ended; a process that was killed may have left them."""
    for folder in children(run.paths.all_checkpoints):
        training = run.state.training(folder.name)
        if training is not None and training.ended is not None:
            remove_tree(folder)
