"""The stages of a job as functions, for Python programs and for the command line."""

from collections.abc import Sequence

from mnist_ray.callbacks import Callback
from mnist_ray.config import JobSpec
from mnist_ray.pipeline.backend import Backend
from mnist_ray.pipeline.job import run_stages
from mnist_ray.run import Run


def run_job(spec: JobSpec, backend: Backend | None = None, callbacks: Sequence[Callback] = ()) -> Run:
    """Search, run the final round, select, retrain, test, and export the tables. A finished run is returned as it is.

    backend: where trainings run, Ray on this machine by default. Raises SpecError, DataError, TrainingFailedError,
    InterruptedRunError, OwnedByAnotherError, TakenOverError, CorruptFileError, OSError.
    """
    return Run(run_stages(spec, backend or _ray(), callbacks, until="tested", with_search=True).path)


def search_job(spec: JobSpec, backend: Backend | None = None, callbacks: Sequence[Callback] = ()) -> Run:
    """Search, run the final round and select; `run_job` goes on from there. Raises as `run_job`."""
    return Run(run_stages(spec, backend or _ray(), callbacks, until="selected", with_search=True).path)


def train_job(spec: JobSpec, backend: Backend | None = None, callbacks: Sequence[Callback] = ()) -> Run:
    """Train and test the spec's `recipe` with the parts of `training`, without a search. Raises as `run_job`."""
    return Run(run_stages(spec, backend or _ray(), callbacks, until="tested", with_search=False).path)


def _ray() -> Backend:
    from mnist_ray.ray_backend.backend import RayBackend  # imports Ray, which a local run does without

    return RayBackend()
