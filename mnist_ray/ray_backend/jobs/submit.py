"""A run as a job of a Ray cluster: submitted once, followed to its end, stopped.

Submissions of a run are numbered: `mnist-ray-NAME`, then `mnist-ray-NAME@2` once that has ended, and so on. Of two who
ask for the same new id at the same moment Ray lets one have it. An id that was deleted cannot be used again (2.60):
its old log is added to, and for a second or two Ray may call the new job failed because the old one is gone.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

from mnist_ray import __version__
from mnist_ray.config import RUN_NAME, JobSpec, dump_spec
from mnist_ray.errors import InterruptedRunError, SpecError
from mnist_ray.pipeline.plan import upload_bytes
from mnist_ray.pipeline.provenance import PACKAGE
from mnist_ray.ray_backend.jobs.client import JobServer, LostConnectionError, RefusedError
from mnist_ray.storage.files import sha256

# Of jobs/runtime-env.yaml too, for those who use Ray's own command.
JOB_ENVIRONMENT = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_JOB_STOP_WAIT_TIME_S": "10",
}

STOPPED_WITHIN_S = 60.0  # what the variable above says, and a slow cluster's time to notice
LOOK_S = 1.0
LONGEST_PAUSE_S = 30.0
GIVE_UP_S = 3600.0

SPEC_FILE = "job.yaml"

Say = Callable[[str], object]


@dataclass(frozen=True)
class Job:
    """One submission of a run."""

    id: str
    run: str  # "" for a job of others
    number: int
    state: str  # "pending", "running", "stopped", "succeeded" or "failed"
    since_s: float  # of that state, by the clock of the cluster
    exit_code: int | None
    message: str  # Ray's own, in one line
    metadata: dict[str, str]

    @property
    def is_over(self) -> bool:
        return self.state in ("stopped", "succeeded", "failed")


def jobs(server: JobServer) -> list[Job]:
    """Every submission of this project that the cluster knows, newest first."""
    found = [_job(details) for details in server.list_jobs()]
    return sorted((job for job in found if job.run), key=lambda job: job.since_s, reverse=True)


def latest_job(server: JobServer, run: str) -> Job | None:
    return max((job for job in jobs(server) if job.run == run), key=lambda job: job.number, default=None)


def known_job(server: JobServer, run: str) -> Job:
    """The latest submission of a run. Raises SpecError that says which runs there are."""
    job = latest_job(server, run)
    if job is None:
        known = ", ".join(sorted({each.run for each in jobs(server)})) or "none"
        raise SpecError(f"--address {server.place}: no job of a run {run!r} is known there (there: {known})")
    return job


def _job(details: Any) -> Job:
    run, number = _run_and_number(details.submission_id or "")
    state = details.status.value.lower()
    since_ms = details.end_time if details.status.is_terminal() else details.start_time
    message = (details.message or "").partition(", last available logs")[0]
    return Job(
        details.submission_id,
        run,
        number,
        state,
        (since_ms or details.start_time or 0) / 1000,
        details.driver_exit_code,
        " ".join(message.split()).rstrip("."),
        details.metadata or {},
    )


# --- submitting ----------------------------------------------------------------------------------------------------


def submit(server: JobServer, spec: JobSpec, note: Say) -> Job:
    """The run's job: a new one, or the one that does this already. Raises SpecError."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_upload(folder, SPEC_FILE, dump_spec(spec))
        check_upload(folder)
        while True:
            latest = latest_job(server, spec.name)
            if latest is not None and not latest.is_over:
                _check_same_spec(latest, spec)
                note(f"{latest.id} is {latest.state} on {server.place} already: followed")
                return latest
            job_id = _id(spec.name, latest.number + 1 if latest else 1)
            if not _begin(server, job_id, folder, spec):
                continue  # somebody else was faster
            note(f"{job_id} is submitted to {server.place}")
            return known_job(server, spec.name)


def _id(run: str, number: int) -> str:
    return f"mnist-ray-{run}" + (f"@{number}" if number > 1 else "")


def _run_and_number(job_id: str) -> tuple[str, int]:
    found = re.fullmatch(rf"mnist-ray-({RUN_NAME.pattern})(?:@(\d+))?", job_id)
    return (found.group(1), int(found.group(2) or 1)) if found else ("", 0)


def _begin(server: JobServer, job_id: str, folder: Path, spec: JobSpec) -> bool:
    """Whether the id was still to be had."""
    try:
        server.submit_job(
            submission_id=job_id,
            entrypoint=f"python -m mnist_ray.cli run {SPEC_FILE}",
            runtime_env={"working_dir": str(folder), "env_vars": JOB_ENVIRONMENT},
            metadata=_metadata(spec),
        )
    except RefusedError as error:
        if "already exists" in error.reason:
            return False
        raise
    return True


def _metadata(spec: JobSpec) -> dict[str, str]:
    """What anybody may read who may see the cluster's jobs."""
    return {
        "mnist_ray_run": spec.name,
        "mnist_ray_storage": spec.storage,  # without a password: no spec has one
        "mnist_ray_spec_sha256": _spec_sha256(spec),
        "mnist_ray_version": __version__,
    }


def _spec_sha256(spec: JobSpec) -> str:
    return sha256(dump_spec(spec).encode())


def _check_same_spec(job: Job, spec: JobSpec) -> None:
    if job.metadata.get("mnist_ray_spec_sha256") != _spec_sha256(spec):
        raise SpecError(
            f"name {spec.name}: {job.id} is {job.state} with another spec: end it with 'mnist-ray stop {spec.name}', "
            "or give this run another name (--name)"
        )


def storage_on_cluster(storage: str) -> str:
    """A relative one lies below the home folder there: a job's working directory goes away with it."""
    return storage if "://" in storage or storage.startswith(("/", "~")) else f"~/mnist_ray/{storage}"


def write_upload(folder: Path, name: str, content: str) -> None:
    """The package as it is here, and one file more: all that a job gets from this machine."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=unwanted)
    (folder / name).write_text(content, encoding="utf-8")


def check_upload(folder: Path, limit_bytes: int = GCS_STORAGE_MAX_SIZE) -> None:
    """Raises SpecError if Ray would not take it."""
    size = upload_bytes(folder)
    if size >= limit_bytes:
        raise SpecError(
            f"the upload: {PACKAGE} is {size / 1e6:.1f} MB packed, Ray takes {limit_bytes / 1e6:.1f} MB: remove what "
            "is not this package's from that folder"
        )


# --- following -----------------------------------------------------------------------------------------------------


class Patience:
    """Waits for a connection to come back: says so once, pauses longer each time, and gives up in the end."""

    def __init__(self, job_id: str, note: Say) -> None:
        self._job_id = job_id
        self._note = note
        self._lost_at: float | None = None
        self._pause_s = LOOK_S

    def lost(self, error: Exception) -> None:
        """Returns after a pause. Raises InterruptedRunError after GIVE_UP_S of them."""
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            self._note(f"{error}; {self._job_id} goes on, and is asked for again for {GIVE_UP_S / 60:.0f} minutes")
        elif now - self._lost_at > GIVE_UP_S:
            raise InterruptedRunError(
                f"{error}; no answer for {GIVE_UP_S / 60:.0f} minutes: the same command follows {self._job_id} again"
            )
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def found(self) -> None:
        if self._lost_at is not None:
            self._note(f"connected again after {time.monotonic() - self._lost_at:.0f} s")
        self._lost_at, self._pause_s = None, LOOK_S


class LogReader:
    """Passes each line of a job's own output on once, however often the whole log is read."""

    def __init__(self, write: Say) -> None:
        self._write = write
        self._num_passed = 0

    def take(self, log: str, is_whole: bool) -> None:
        """log: from its beginning. Of a line that is being written nothing is passed on before it is whole."""
        begin = max(self._num_passed, _own_output(log))
        end = len(log) if is_whole else log.rfind("\n") + 1
        if end > begin:
            self._write(log[begin:end])
            self._num_passed = end


def _own_output(log: str) -> int:
    """Where the job's own output begins: what Ray says before it is of no use to anybody who waits for a run."""
    found = re.search(r"^Running entrypoint for job .*\n", log, re.MULTILINE)
    return found.end() if found else len(log)


def follow(server: JobServer, job_id: str, write: Say, note: Say) -> Job:
    """Pass a job's output on until the job is over; a log that breaks off is not its end. Returns it as it ended.

    Asks for the whole log each time, with an end to each request: a stream of Ray's own cannot be told from a dead
    one, and begins at the beginning too. Raises InterruptedRunError where the cluster is gone, or does not answer.
    """
    patience, reader = Patience(job_id, note), LogReader(write)
    while True:
        began = time.monotonic()
        try:
            job = _look(server, job_id)  # before the log, so that the log of a job that is over is whole
            log = _log(server, job)
        except LostConnectionError as error:
            patience.lost(error)
            continue
        patience.found()
        if log is not None:
            reader.take(log, job.is_over)
        if job.is_over:
            return job
        asked_s = time.monotonic() - began
        time.sleep(min(max(LOOK_S, 4 * asked_s), LONGEST_PAUSE_S))  # a long log over a slow line less often


def _look(server: JobServer, job_id: str) -> Job:
    try:
        return _job(server.get_job_info(job_id))
    except RefusedError as error:
        if error.status != 404:
            raise LostConnectionError(str(error)) from None
        raise InterruptedRunError(
            f"{job_id} is not known on {server.place} any more, so the cluster was started anew: the same submit goes "
            "on with the run, if its storage is still there"
        ) from None


def _log(server: JobServer, job: Job) -> str | None:
    """None where it cannot be read any more: the job's node is gone."""
    try:
        return str(server.get_job_logs(job.id))
    except RefusedError as error:
        if job.is_over:
            return None
        raise LostConnectionError(str(error)) from None


def print_log(server: JobServer, job: Job, write: Say) -> None:
    """What there is now."""
    LogReader(write).take(_log(server, job) or "", is_whole=True)


# --- stopping ------------------------------------------------------------------------------------------------------


def stop(server: JobServer, run: str) -> tuple[Job, bool]:
    """Ask a run's job to end in good order and wait until it has. Returns it, and whether it was still going.

    Raises SpecError if it does not end.
    """
    job = known_job(server, run)
    if job.is_over:
        return job, False
    give_up_at = time.monotonic() + STOPPED_WITHIN_S
    while time.monotonic() < give_up_at:
        server.stop_job(job.id)  # more than once, because a job that is about to begin does not hear it
        job = _look(server, job.id)
        if job.is_over:
            return job, True
        time.sleep(LOOK_S)
    raise SpecError(
        f"{job.id} is still {job.state} after {STOPPED_WITHIN_S:.0f} s: look with 'mnist-ray status {run}', and stop "
        "it again"
    )
