"""Submitting a run as a job of a Ray cluster.

A run has one job at a time. Of two clients that submit the same new id at the same moment, one succeeds. The id of a
deleted job is not used again: Ray 2.60 appends to the log of the old job, and for a second or two may report the new
job as failed because the old one is gone.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mnist_ray import __version__
from mnist_ray.config import JobSpec, dump_spec
from mnist_ray.errors import SpecError
from mnist_ray.pipeline.provenance import PACKAGE
from mnist_ray.ray_backend import compat
from mnist_ray.ray_backend.jobs.client import JobServer, RefusedError
from mnist_ray.ray_backend.jobs.job import RUN, SPEC_SHA256, STORAGE, VERSION, Job, find_job, job_id_of, latest_job
from mnist_ray.storage.files import sha256

logger = logging.getLogger(__name__)

# The same as in jobs/runtime-env.yaml, which Ray's own command reads.
JOB_ENVIRONMENT = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_JOB_STOP_WAIT_TIME_S": "10",
}

SPEC_FILE = "job.yaml"


def submit(server: JobServer, spec: JobSpec) -> Job:
    """Start a job for the run, or return the job that already works on it.

    Raises SpecError for an upload that is too large, and for a job of the same run with another spec.
    """
    with tempfile.TemporaryDirectory() as folder:
        upload = Path(folder)
        write_upload(upload, SPEC_FILE, dump_spec(spec))
        check_upload(upload)
        while True:
            latest = latest_job(server, spec.name)
            if latest is not None and not latest.has_ended:
                _check_same_spec(latest, spec)
                logger.info("%s is already %s on %s; following it", latest.id, latest.state, server.address)
                return latest
            job_id = job_id_of(spec.name, latest.number + 1 if latest else 1)
            try:
                server.submit(
                    job_id, f"python -m mnist_ray.cli run {SPEC_FILE}", upload, JOB_ENVIRONMENT, _metadata(spec)
                )
            except RefusedError as error:
                if "already exists" in error.reason:
                    continue  # another client took the id
                raise
            logger.info("%s is submitted to %s", job_id, server.address)
            return find_job(server, spec.name)


def _metadata(spec: JobSpec) -> dict[str, str]:
    return {
        RUN: spec.name,
        STORAGE: spec.storage,  # without a password: no spec has one
        SPEC_SHA256: _spec_sha256(spec),
        VERSION: __version__,
    }


def _spec_sha256(spec: JobSpec) -> str:
    return sha256(dump_spec(spec).encode())


def _check_same_spec(job: Job, spec: JobSpec) -> None:
    if job.spec_sha256 != _spec_sha256(spec):
        raise SpecError(
            f"name {spec.name}: {job.id} is {job.state} with another spec: stop that job with "
            f"'mnist-ray stop {spec.name}', or give this run another name (--name)"
        )


def storage_on_cluster(storage: str) -> str:
    """Return the storage as the cluster sees it: a relative folder lies below ~/mnist_ray of the head.

    A job's working directory is a copy that is removed with the job.
    """
    return storage if "://" in storage or storage.startswith(("/", "~")) else f"~/mnist_ray/{storage}"


def trackers_on_cluster(log_to: Sequence[str]) -> tuple[str, ...]:
    """Return `log_to` as the cluster sees it: a relative folder of MLflow lies as `storage_on_cluster` has it."""
    entries = [entry.partition("=") for entry in log_to]
    return tuple(f"{name}={storage_on_cluster(where)}" if where else name for name, _, where in entries)


# --- the upload --------------------------------------------------------------------------------------------------


def write_upload(folder: Path, name: str, content: str) -> None:
    """Write a job's working directory: a copy of this package, and a file with `content`; nothing else is sent."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=unwanted)
    (folder / name).write_text(content, encoding="utf-8")


def check_upload(folder: Path, limit_bytes: int | None = None) -> None:
    """Raise SpecError for a working directory that is too large for Ray (or for `limit_bytes`)."""
    size, limit_bytes = compat.upload_bytes(folder), limit_bytes or compat.most_upload_bytes()
    if size >= limit_bytes:
        raise SpecError(
            f"the upload: {PACKAGE} is {size / 1e6:.1f} MB packed, Ray takes {limit_bytes / 1e6:.1f} MB: remove the "
            "files that are not part of this package from that folder"
        )


def upload_bytes(spec: JobSpec) -> int:
    """Return the size of the package that `submit` would send for a spec, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        write_upload(Path(folder), SPEC_FILE, dump_spec(spec))
        return compat.upload_bytes(Path(folder))
