"""Copying a run from a cluster to this machine, whole or not at all."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mnist_ray.config import RUN_NAME, check_storage
from mnist_ray.errors import SpecError
from mnist_ray.ray_backend.jobs.client import JobServer, connect
from mnist_ray.ray_backend.jobs.follow import follow
from mnist_ray.ray_backend.jobs.job import latest_job
from mnist_ray.ray_backend.jobs.submit import JOB_ENVIRONMENT, storage_on_cluster, write_upload
from mnist_ray.record.archive import pack, unpack
from mnist_ray.record.exports import write_exports
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import StoragePath, storage_path
from mnist_ray.storage.object_stores import OutOfReachError

logger = logging.getLogger(__name__)

MONITORED_S = 3.0  # Ray watches an ended job that long; one that is deleted in that time comes back as failed
_REQUEST = "request.json"


def fetch_record(address: str | None, name: str, storage: str | None) -> str:
    """Return a run's packed record (record/archive.py).

    The record is read from the run's storage where this machine reaches the storage, else through the cluster.
    storage: the folder that holds the runs; the one in the job's metadata by default. Raises SpecError, OSError.
    """
    if not RUN_NAME.fullmatch(name):
        raise SpecError(f"RUN {name!r} is not a valid run name: 'mnist-ray status' lists them")
    if storage is not None and (folder := _reachable_folder(storage, name)):
        return pack(folder)
    server = connect(address)
    if storage is None:
        job = latest_job(server, name)
        storage = job.storage if job else None
    if not storage:
        raise SpecError(
            f"{server.named}: no job there tells the storage of the run {name!r}: give the folder that "
            "holds the runs with --storage"
        )
    storage = storage_on_cluster(storage)
    if folder := _reachable_folder(storage, name):
        logger.info("fetched from %s", folder)
        return pack(folder)
    return _fetch_through_cluster(server, name, storage)


def _reachable_folder(storage: str, name: str) -> StoragePath | None:
    """Return the run's folder if this machine reaches it. A home folder is the head's, whatever is in the one here."""
    if storage.startswith("~"):
        return None
    check_storage(storage)
    folder = storage_path(storage, wait_for_outages=False) / name
    with contextlib.suppress(OutOfReachError):
        return folder if folder.is_absolute() and RunDir(folder).exists else None
    return None


def _fetch_through_cluster(server: JobServer, name: str, storage: str) -> str:
    """Run a job that prints the record into its log: Ray has no call that returns a file."""
    job_id = f"fetch-mnist-ray-{name}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as upload:
        write_upload(Path(upload), _REQUEST, json.dumps({"run": name, "storage": storage}))
        server.submit(job_id, f"python -m mnist_ray.record.archive {_REQUEST}", Path(upload), JOB_ENVIRONMENT)
    logger.info("%s is fetched through %s", name, server.address)
    output: list[str] = []
    try:
        job = follow(server, job_id, output.append)
    finally:
        with contextlib.suppress(SpecError):
            server.stop(job_id)
            time.sleep(MONITORED_S)
            server.delete(job_id)
    text = "".join(output)
    if job.state != "succeeded":
        reason = (text.strip().splitlines() or [job.message])[-1]
        raise SpecError(f"{server.named}: {name} cannot be fetched: {reason}")
    return text


@contextlib.contextmanager
def unpacked_run(record: str, destination: Path) -> Iterator[RunDir]:
    """Unpack a record with its exported files into a folder beside `destination`, and move it there after the block.

    An earlier copy of the same run is replaced; files that a user put into it are kept. After an error `destination`
    is as it was, and nothing is left beside it. Raises SpecError where `destination` is something else,
    CorruptFileError, OSError.
    """
    fetching = destination.parent / ".fetching"  # no command looks there for runs
    fetching.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=fetching))
    try:
        run = RunDir(folder / destination.name)
        unpack(record, run.path)
        if run.state.started is None:
            raise SpecError(f"{destination.name} has not begun yet, so there is nothing to fetch: try again later")
        _check_destination(RunDir(destination), run)
        write_exports(run.path)
        yield run
        _replace(destination, run.path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process fetches too
            fetching.rmdir()


def _check_destination(existing: RunDir, run: RunDir) -> None:
    """Raise SpecError unless `existing` is absent or an earlier copy, whose files are the first of the run's."""
    if not existing.path.exists():
        return
    if existing.paths.leases.exists():
        raise SpecError(f"{existing.path} is not a copy but a run of its own: fetch into another folder (--to)")
    existing.catch_up()
    last = f"{existing.log.num_files:06d}.json"  # each file is sealed to the one before
    same, there = run.paths.record / last, existing.paths.record / last
    if existing.log.num_files == 0 or not same.exists() or same.read_bytes() != there.read_bytes():
        raise SpecError(f"{existing.path} is not an earlier copy of this run: fetch into another folder (--to)")


def _replace(destination: Path, new: Path) -> None:
    """Rename `new` to `destination`, with the files that are in the old folder alone; put that back if this fails."""
    old = new.with_name(f"{new.name}.old")
    if destination.exists():
        destination.rename(old)
    try:
        _copy_missing(old, new)
        new.rename(destination)
    except BaseException:
        if old.exists():
            old.rename(destination)
        raise


def _copy_missing(old: Path, new: Path) -> None:
    """Copy every file and link of `old` that has no counterpart in `new`."""
    for parent, folders, names in os.walk(old):
        there = new / Path(parent).relative_to(old)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*names, *links):
            if not os.path.lexists(there / name):
                there.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(parent, name), there / name, follow_symlinks=False)
