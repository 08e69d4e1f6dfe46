"""Trainings in this process, one after another, without Ray: for a debugger, a notebook, or a small machine."""

import contextlib
import logging
import traceback
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from mnist_ray.config import JobSpec, Retrain, Search, Stage, StepMode
from mnist_ray.errors import MnistRayError, SpecError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.backend import Connection, RetrainingFailedError, RetrainingReports
from mnist_ray.pipeline.capacity import Capacity, local_capacity
from mnist_ray.pipeline.execution import run_trial, states_of, tensors_of
from mnist_ray.pipeline.provenance import processor
from mnist_ray.pipeline.search import WAITING, TrialController
from mnist_ray.pipeline.tasks import Execution, Failure, RetrainingEnd, TrainingImages, TrainingTask
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.failures import StorageFailure
from mnist_ray.storage.files import storage_path
from mnist_ray.training.checkpoint import model_to_bytes
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.loop import DivergedError, TrainState
from mnist_ray.training.process import prepare_to_train

logger = logging.getLogger(__name__)


class LocalBackend:
    """Runs everything in the calling thread. Kills and hangs are not supervised."""

    name: Literal["local"] = "local"

    def check_early(self, spec: JobSpec, with_search: bool) -> None:
        """Raise SpecError where the spec asks for a GPU and this process has none."""
        asked = {"retrain.gpus_per_worker": float(spec.retrain.gpus_per_worker)} if spec.retrain else {}
        if with_search:
            asked["search.gpus_per_trial"] = spec.search.gpus_per_trial
        for key, gpus in asked.items():
            if gpus and not torch.cuda.is_available():
                raise SpecError(f"{key} {gpus:g}: torch finds no GPU on this machine: use --set {key}=0")

    @contextlib.contextmanager
    def connect(self, spec: JobSpec, run: RunDir) -> Iterator[Connection]:
        """Yield a connection; the number of torch's threads is restored at the end."""
        if spec.retrain and spec.retrain.most_workers > 1:
            logger.info(
                "retrain.workers is %s, but without Ray there is 1; a retraining begun on more starts again",
                spec.retrain.workers_in_words,
            )
        num_threads = torch.get_num_threads()
        try:
            yield LocalConnection()
        finally:
            torch.set_num_threads(num_threads)


class LocalConnection:
    """The calling process as a backend that is ready."""

    def __init__(self) -> None:
        self.capacity = Capacity(local_capacity().cpus, torch.cuda.device_count(), (processor(),))

    def num_concurrent_trials(self, spec: JobSpec) -> int:
        return 1

    def check_retraining(self, spec: JobSpec) -> None:
        """Accept every spec: one worker is always there."""

    def num_concurrent_retrainings(self, retrain: Retrain, num_open: int) -> int:
        return 1

    def prepare(self, stage: Stage) -> None:
        """Do nothing: all that trains is imported already."""

    def run_trials(self, controller: TrialController, images: TrainingImages, search: Search) -> None:
        """Run the controller's trials one after another. Raises OSError, TakenOverError."""
        worker = Worker(device=_device(search.gpus_per_trial))
        data = tensors_of(images, worker.device)
        prepare_to_train(search.cpus_per_trial)
        execution = Execution(1, search.cpus_per_trial, worker.device.type, num_failures=0)
        while (task := controller.next_task()) is not None:
            if task is WAITING:
                continue

            def report(metrics: EpochMetrics, steps: StepMode | None, training_id: str = task.id) -> bool:
                return controller.on_epoch(training_id, metrics) and not controller.is_over()

            end = run_trial(task, data, worker, report)
            if end.storage_failure is not None:
                raise end.storage_failure.to_error()
            controller.on_end(task.id, execution.with_steps(end.steps), end.failure)
            controller.poll()
        controller.stop_what_is_left(lambda training_id: execution)
        controller.poll()

    def retrain(
        self,
        tasks: Sequence[TrainingTask],
        images: TrainingImages,
        settings: Retrain,
        num_concurrent: int,
        max_failures: int,
        reports: RetrainingReports,
    ) -> None:
        """Do the trainings one after another on one worker. Raises RetrainingFailedError, OSError."""
        worker = Worker(device=_device(settings.gpus_per_worker))
        data = tensors_of(images, worker.device)
        prepare_to_train(settings.cpus_per_worker)
        failures_left = max_failures
        for task in tasks:
            num_failures = 0
            while (end := _attempt(task, data, worker, settings, reports, num_failures, failures_left)) is None:
                num_failures += 1
                failures_left -= 1
            reports.on_end(end)
            reports.poll()


def _attempt(
    task: TrainingTask,
    data: TrainingData,
    worker: Worker,
    settings: Retrain,
    reports: RetrainingReports,
    num_failures: int,
    failures_left: int,
) -> RetrainingEnd | None:
    """Train once; None means that the training failed and is to be started again."""
    num_reported = 0
    state: TrainState | None = None
    failure: Failure | None = None
    try:
        for state in states_of(task, data, worker, only_workers=1):
            for metrics in state.history[num_reported:]:
                reports.on_epoch(task.id, metrics)
            num_reported = len(state.history)
            reports.poll()
    except DivergedError as error:
        failure = Failure(str(error), traceback.format_exc())
    except MnistRayError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and StorageFailure.from_error(error, storage_path(task.checkpoints)):
            raise
        reports.poll()  # raises what the record met, which no further attempt would mend
        reason = f"{task.id}: {type(error).__name__}: {error}"
        if failures_left == 0:
            raise RetrainingFailedError(f"{traceback.format_exc()}\n{reason}") from error
        logger.info("%s: starting it again", reason)
        return None
    steps = state.steps if state else None
    execution = Execution(1, settings.cpus_per_worker, worker.device.type, num_failures, steps)
    model = model_to_bytes(state.shipped_model) if state and failure is None else None
    return RetrainingEnd(task.id, model, failure, execution)


def _device(gpus: float) -> torch.device:
    return torch.device("cuda" if gpus else "cpu")
