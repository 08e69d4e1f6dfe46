"""The stages of a job as functions, for Python programs and for the command line."""

import contextlib
from collections.abc import Iterator, Sequence

from mnist_ray.callbacks import Callback
from mnist_ray.config import JobSpec
from mnist_ray.pipeline.backend import Backend
from mnist_ray.pipeline.job import run_stages
from mnist_ray.progress import ProgressDisplay
from mnist_ray.run import Run


def run_job(
    spec: JobSpec, backend: Backend | None = None, callbacks: Sequence[Callback] = (), progress: bool = True
) -> Run:
    """Search, run the final round, select, retrain, test, and export the tables. A finished run is returned as it is.

    backend: where trainings run, Ray on this machine by default. progress: show the run's progress and its messages on
    standard error, or below a notebook's cell. Raises SpecError, DataError, TrainingFailedError, InterruptedRunError,
    OwnedByAnotherError, TakenOverError, CorruptFileError, OSError.
    """
    with _displayed(spec, callbacks, progress) as followers:
        return Run(run_stages(spec, backend or _ray(), followers, until="tested", with_search=True).path)


def search_job(
    spec: JobSpec, backend: Backend | None = None, callbacks: Sequence[Callback] = (), progress: bool = True
) -> Run:
    """Search, run the final round and select; `run_job` goes on from there. Arguments and errors as of `run_job`."""
    with _displayed(spec, callbacks, progress) as followers:
        return Run(run_stages(spec, backend or _ray(), followers, until="selected", with_search=True).path)


def train_job(
    spec: JobSpec, backend: Backend | None = None, callbacks: Sequence[Callback] = (), progress: bool = True
) -> Run:
    """Train and test the spec's `recipe` with the parts of `training`, without a search.

    Arguments and errors as of `run_job`.
    """
    with _displayed(spec, callbacks, progress) as followers:
        return Run(run_stages(spec, backend or _ray(), followers, until="tested", with_search=False).path)


@contextlib.contextmanager
def _displayed(spec: JobSpec, callbacks: Sequence[Callback], progress: bool) -> Iterator[Sequence[Callback]]:
    """Show a progress display while the block lasts, and yield the callbacks with it."""
    if not progress:
        yield callbacks
        return
    with ProgressDisplay(spec.search.objective) as display:
        yield [display, *callbacks]


def _ray() -> Backend:
    from mnist_ray.ray_backend.backend import RayBackend  # imports Ray, which a local run does without

    return RayBackend()
