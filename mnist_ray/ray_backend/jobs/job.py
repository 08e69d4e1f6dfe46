"""The jobs of a cluster that are submissions of a run.

Submissions of a run are numbered: `mnist-ray-NAME`, then `mnist-ray-NAME@2` once that job has ended, and so on.
"""

import re
from dataclasses import dataclass

from ray.job_submission import JobDetails

from mnist_ray.config import RUN_NAME
from mnist_ray.errors import SpecError
from mnist_ray.ray_backend.jobs.client import JobServer

# The names of a job's metadata, which everybody may read who may see the cluster's jobs.
RUN, STORAGE, SPEC_SHA256, VERSION = (f"mnist_ray_{name}" for name in ("run", "storage", "spec_sha256", "version"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission of a run."""

    id: str
    run: str  # "" for a job that is no submission of a run
    number: int  # of the submission, from 1 on
    state: str  # "pending", "running", "stopped", "succeeded" or "failed"
    since_s: float  # the start of that state, in seconds since 1970, by the clock of the cluster
    exit_code: int | None
    message: str  # Ray's own, in one line
    storage: str | None = None  # the folder or store that holds the run
    spec_sha256: str | None = None
    version: str | None = None  # of mnist_ray

    @property
    def has_ended(self) -> bool:
        return self.state in ("stopped", "succeeded", "failed")


def job_of(details: JobDetails) -> Job:
    """Return the part of Ray's details that the job commands use."""
    parts = re.fullmatch(rf"mnist-ray-({RUN_NAME.pattern})(?:@(\d+))?", details.submission_id or "")
    since_ms = details.end_time if details.status.is_terminal() else details.start_time
    message = (details.message or "").partition(", last available logs")[0]
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or "",
        run=parts.group(1) if parts else "",
        number=int(parts.group(2) or 1) if parts else 0,
        state=details.status.value.lower(),
        since_s=(since_ms or details.start_time or 0) / 1000,
        exit_code=details.driver_exit_code,
        message=" ".join(message.split()).rstrip("."),
        storage=metadata.get(STORAGE),
        spec_sha256=metadata.get(SPEC_SHA256),
        version=metadata.get(VERSION),
    )


def job_id_of(run: str, number: int) -> str:
    """Return the id of a run's submission."""
    return f"mnist-ray-{run}" + (f"@{number}" if number > 1 else "")


def jobs(server: JobServer) -> list[Job]:
    """Return every submission of a run on the cluster, newest first."""
    submissions = [job for job in map(job_of, server.list_jobs()) if job.run]
    return sorted(submissions, key=lambda job: job.since_s, reverse=True)


def latest_job(server: JobServer, run: str) -> Job | None:
    """Return the latest submission of a run; None where there is none."""
    return max((job for job in jobs(server) if job.run == run), key=lambda job: job.number, default=None)


def find_job(server: JobServer, run: str) -> Job:
    """Return the latest submission of a run. Raises SpecError that lists the runs of the cluster."""
    job = latest_job(server, run)
    if job is None:
        runs = ", ".join(sorted({each.run for each in jobs(server)})) or "none"
        raise SpecError(f"{server.named}: the cluster has no job of a run {run!r} (there: {runs})")
    return job
