"""A run that lies with a cluster is brought here, whole or not at all."""

import contextlib
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mnist_ray.config import RUN_NAME, check_storage
from mnist_ray.errors import SpecError
from mnist_ray.ray_backend.jobs.client import JobServer, connect
from mnist_ray.ray_backend.jobs.submit import JOB_ENVIRONMENT, follow, latest_job, storage_on_cluster, write_upload
from mnist_ray.record.archive import packed, unpack
from mnist_ray.record.exports import write_views
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import StoragePath, seal, storage_path
from mnist_ray.storage.object_stores import OutOfReachError

MONITORED_S = 3.0  # so long Ray looks after a job that is over; one deleted in that time comes back as failed
_REQUEST = "request.json"

Say = Callable[[str], object]


def packed_run(address: str | None, name: str, storage: str | None, note: Say) -> str:
    """A run's record (see record/packing.py), from its storage where that can be read from here, else through the
    cluster. storage: where its job does not say so. Raises SpecError.
    """
    if not RUN_NAME.fullmatch(name):
        raise SpecError(f"RUN {name!r} is not a run name: 'mnist-ray status' lists them")
    if storage is not None and (here := _folder_here(storage, name)):
        return packed(here)
    server = connect(address)
    storage = storage_on_cluster(storage or _storage_of(server, name))
    if here := _folder_here(storage, name):
        note(f"fetched from {here}")
        return packed(here)
    return _through_cluster(server, name, storage, note)


def _folder_here(storage: str, name: str) -> StoragePath | None:
    """The run's folder, if this machine sees it; a home folder is that of the cluster, whatever is in the one here."""
    if storage.startswith("~"):
        return None
    check_storage(storage)
    folder = storage_path(storage, wait_for_outages=False) / name
    with contextlib.suppress(OutOfReachError):
        return folder if folder.is_absolute() and RunDir(folder).exists else None
    return None


def _storage_of(server: JobServer, name: str) -> str:
    job = latest_job(server, name)
    storage = job and job.metadata.get("mnist_ray_storage")
    if not storage:
        raise SpecError(
            f"--address {server.place}: no job there says where the run {name!r} lies: name the folder that holds the "
            "runs with --storage"
        )
    return storage


def _through_cluster(server: JobServer, name: str, storage: str, note: Say) -> str:
    """Ray has no call that returns a file, so a job of its own prints the record into its log."""
    job_id = f"fetch-mnist-ray-{name}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as place:
        write_upload(Path(place), _REQUEST, json.dumps({"run": name, "storage": storage}))
        server.submit_job(
            submission_id=job_id,
            entrypoint=f"python -m mnist_ray.record.archive {_REQUEST}",
            runtime_env={"working_dir": place, "env_vars": JOB_ENVIRONMENT},
        )
    note(f"{name} is fetched through {server.place}")
    said: list[str] = []
    try:
        job = follow(server, job_id, said.append, note)
    finally:
        _remove(server, job_id)
    text = "".join(said)
    if job.state != "succeeded":
        reason = (text.strip().splitlines() or [job.message])[-1]
        raise SpecError(f"--address {server.place}: {name} cannot be fetched: {reason}")
    return text


def _remove(server: JobServer, job_id: str) -> None:
    with contextlib.suppress(SpecError):
        server.stop_job(job_id)
        time.sleep(MONITORED_S)
        server.delete_job(job_id)


@contextlib.contextmanager
def fetched(text: str, destination: Path) -> Iterator[RunDir]:
    """A packed record as a run with its views, for the block beside its destination, and then there.

    An earlier copy of the same run is replaced. Whatever goes wrong, `destination` is as it was, and nothing is left
    beside it. Raises SpecError where something else lies there, CorruptFileError, OSError.
    """
    beside = destination.parent / ".fetching"  # where nobody looks for runs
    beside.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=beside))
    try:
        run = RunDir(place / destination.name)
        unpack(text, run.path)
        if run.stage("started") is None:
            raise SpecError(f"{destination.name} has not begun yet, so there is nothing to fetch: wait for it")
        _check_destination(RunDir(destination), run)
        write_views(run)
        yield run
        _replace(destination, run.path)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else fetches too
            beside.rmdir()


def _check_destination(there: RunDir, run: RunDir) -> None:
    """Only an earlier copy may be replaced: one whose events are the first of the run's."""
    if not there.path.exists():
        return
    if there.leases.exists():
        raise SpecError(f"{there.path} is no copy: a process worked on the run there: fetch it elsewhere (--to)")
    old, new = there.events(), run.events()
    if not old or len(old) > len(new) or seal(old[-1]) != seal(new[len(old) - 1]):  # each event seals those before it
        raise SpecError(
            f"{there.path} holds something else than an earlier copy of this run: fetch it elsewhere (--to)"
        )


def _replace(destination: Path, new: Path) -> None:
    old = new.with_name(f"{new.name}.old")
    if destination.exists():
        destination.rename(old)
    try:
        new.rename(destination)
    except BaseException:
        if old.exists():
            old.rename(destination)
        raise
