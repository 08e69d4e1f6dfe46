"""The interface between the pipeline and whatever runs its trainings: Ray, or this process."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from mnist_ray.config import JobSpec, Retrain, Search, Stage
from mnist_ray.errors import TrainingFailedError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.pipeline.search import TrialController
from mnist_ray.pipeline.tasks import RetrainingEnd, TrainingImages, TrainingTask
from mnist_ray.record.rundir import RunDir


class RetrainingFailedError(TrainingFailedError):
    """The workers of a retraining died too often, or could not be started; the last line says why."""


class RetrainingReports(Protocol):
    """The pipeline's side of a retraining. Methods are called in the driver's main thread and may raise OSError."""

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
        """Record an epoch; an epoch that is on record already is passed over."""

    def on_end(self, end: RetrainingEnd) -> None:
        """Record the end of a training."""

    def poll(self) -> None:
        """Pass on what is published; called at least once a second while trainings run."""


class Connection(Protocol):
    """A backend that is ready to work."""

    @property
    def capacity(self) -> Capacity: ...

    def num_concurrent_trials(self, spec: JobSpec) -> int:
        """Return how many trials run at once. Raises SpecError if there is never room for one."""

    def check_retraining(self, spec: JobSpec) -> None:
        """Raise SpecError if the workers of the retraining can never run at once."""

    def num_concurrent_retrainings(self, retrain: Retrain, num_open: int) -> int:
        """Return how many of `num_open` retrainings run side by side."""

    def prepare(self, stage: Stage) -> None:
        """Begin to get ready for a stage that comes soon, and return at once."""

    def run_trials(self, controller: TrialController, images: TrainingImages, search: Search) -> None:
        """Run the controller's trials until it has none left, or its time is up.

        The backend asks `controller.next_task` for work and reports every epoch, end and restart to the controller.
        Raises OSError, TakenOverError, KeyboardInterrupt; trainings that run then stay open on the record.
        """

    def retrain(
        self,
        tasks: Sequence[TrainingTask],
        images: TrainingImages,
        settings: Retrain,
        num_concurrent: int,
        max_failures: int,
        reports: RetrainingReports,
    ) -> None:
        """Do the trainings, `num_concurrent` side by side, and report every epoch and end, in order for each training.

        Workers that die are started again at most `max_failures` times in each group of workers. Raises
        RetrainingFailedError once the other trainings have ended, and OSError where checkpoints cannot be written.
        """


class Backend(Protocol):
    """A way to run trainings."""

    @property
    def name(self) -> Literal["ray", "local"]: ...

    def check_early(self, spec: JobSpec, with_search: bool) -> None:
        """Raise SpecError within a second for a spec that this backend could never run, where that is known."""

    def connect(self, spec: JobSpec, run: RunDir) -> AbstractContextManager[Connection]:
        """Start or join what the backend needs, for a block.

        Raises SpecError where the cluster cannot be joined, or where a machine does not share the run's storage.
        """
