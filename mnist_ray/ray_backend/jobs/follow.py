"""Following a job to its end, printing its log, stopping it."""

import logging
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from mnist_ray.errors import InterruptedRunError, SpecError
from mnist_ray.ray_backend.jobs.client import JobServer, LostConnectionError, RefusedError
from mnist_ray.ray_backend.jobs.job import Job, find_job, job_of

logger = logging.getLogger(__name__)

STOPPED_WITHIN_S = 60.0  # RAY_JOB_STOP_WAIT_TIME_S of a job's environment, and time for a slow cluster to notice
LOOK_S = 1.0
LONGEST_PAUSE_S = 30.0
GIVE_UP_S = 3600.0

Write = Callable[[str], object]


class Reconnection:
    """Pauses between requests while the job server does not answer: longer each time, until GIVE_UP_S have passed."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._lost_at: float | None = None
        self._pause_s = LOOK_S

    def pause(self, error: Exception) -> None:
        """Wait after a request that failed. Raises InterruptedRunError after GIVE_UP_S of such requests."""
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            logger.warning("%s; %s keeps running; retrying for %.0f minutes", error, self._job_id, GIVE_UP_S / 60)
        elif now - self._lost_at > GIVE_UP_S:
            raise InterruptedRunError(
                f"{error}; no answer for {GIVE_UP_S / 60:.0f} minutes: the same command follows {self._job_id} again"
            )
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def reset(self) -> None:
        """Note that a request was answered."""
        if self._lost_at is not None:
            logger.info("connected again after %.0f s", time.monotonic() - self._lost_at)
        self._lost_at, self._pause_s = None, LOOK_S


class LogReader:
    """A writer of a job's own output, which writes each line once, however often the whole log is read."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._num_written = 0  # characters of the log, with those that are skipped

    def update(self, log: str, is_whole: bool) -> None:
        """Write the new lines of `log`, which begins at its beginning; an unfinished line waits unless `is_whole`.

        Ray's own lines at the beginning are skipped.
        """
        begin_of_output = re.search(r"^Running entrypoint for job .*\n", log, re.MULTILINE)
        begin = max(self._num_written, begin_of_output.end() if begin_of_output else len(log))
        end = len(log) if is_whole else log.rfind("\n") + 1
        if end > begin:
            self._write(log[begin:end])
            self._num_written = end


def follow(server: JobServer, job_id: str, write: Write) -> Job:
    """Write a job's output until the job has ended, and return the job.

    Each request reads the whole log, with a time limit: a stream from Ray that is dead looks like a silent one, and
    begins at the beginning too. Raises InterruptedRunError where the cluster is gone or does not answer.
    """
    reconnection, reader = Reconnection(job_id), LogReader(write)
    while True:
        began = time.monotonic()
        try:
            job = _current_job(server, job_id)  # before the log, so that the log of a job that has ended is whole
            log = log_of(server, job)
        except LostConnectionError as error:
            reconnection.pause(error)
            continue
        reconnection.reset()
        if log is not None:
            reader.update(log, job.has_ended)
        if job.has_ended:
            return job
        request_s = time.monotonic() - began
        time.sleep(min(max(LOOK_S, 4 * request_s), LONGEST_PAUSE_S))  # seldom for a long log over a slow connection


def _current_job(server: JobServer, job_id: str) -> Job:
    try:
        return job_of(server.job(job_id))
    except RefusedError as error:
        if error.status != 404:
            raise LostConnectionError(str(error)) from None
        raise InterruptedRunError(
            f"{server.address} no longer has the job {job_id}, so the cluster was restarted: the same submit continues "
            "the run if its storage still exists"
        ) from None


def log_of(server: JobServer, job: Job) -> str | None:
    """Return a job's log; None where the node that held the log is gone after the job's end."""
    try:
        return server.log(job.id)
    except RefusedError as error:
        if job.has_ended:
            return None
        raise LostConnectionError(str(error)) from None


def print_log(server: JobServer, job: Job, write: Write) -> None:
    """Write a job's output so far."""
    LogReader(write).update(log_of(server, job) or "", is_whole=True)


def progress_of(log: str) -> str:
    """Return how far a job is by its log: the stage, what is done of it, and the best trial; "" before any stage."""
    stage, done, of, best = "", 0, "", ""
    for line in log.splitlines():
        match = re.fullmatch(r"\d\d:\d\d:\d\d ([\w ]+): (.*)", line)
        if match is None:
            continue
        stage, text = match.groups()
        if counted := re.match(r"(\d+)( of \d+ \w+)", text):
            done, of = int(counted[1]), counted[2]
        elif re.match(r"\S+ (complete|pruned|failed|stopped) after ", text):
            done += 1
        elif text.startswith("done in "):
            of = ""
        if found := re.search(r"best so far \S+ \(\S+\)", text):
            best = found[0]
    parts = [stage, f"{done}{of}" if of and stage != "retrain" else "", best]
    return ", ".join(part for part in parts if part)


class StoppedJob(NamedTuple):
    """A job that has ended, and whether a request to stop ended it."""

    job: Job
    was_running: bool


def stop(server: JobServer, run: str) -> StoppedJob:
    """Stop a run's job in good order, and wait for its end. Raises SpecError if the job does not end in time."""
    job = find_job(server, run)
    if job.has_ended:
        return StoppedJob(job, was_running=False)
    give_up_at = time.monotonic() + STOPPED_WITHIN_S
    while time.monotonic() < give_up_at:
        server.stop(job.id)  # more than once, because a job that is about to begin misses the request
        job = _current_job(server, job.id)
        if job.has_ended:
            return StoppedJob(job, was_running=True)
        time.sleep(LOOK_S)
    raise SpecError(
        f"{job.id} is still {job.state} after {STOPPED_WITHIN_S:.0f} s: look with 'mnist-ray status {run}', then stop "
        "the run again"
    )
