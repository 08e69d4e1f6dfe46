"""Doing one training of a task in the calling process: shared by all backends."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mnist_ray.config import StepMode
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.tasks import Failure, TrainingImages, TrainingTask
from mnist_ray.storage.failures import StorageFailure
from mnist_ray.storage.files import storage_path
from mnist_ray.training.checkpoint import Checkpoints, fit_resumably
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import DivergedError, TrainState


@dataclass(frozen=True)
class TrialEnd:
    """The end of a trial in the process that ran it."""

    failure: Failure | None = None
    storage_failure: StorageFailure | None = None  # no failure of the trial: it would meet every trial in turn
    steps: StepMode | None = None


def tensors_of(images: TrainingImages, device: torch.device) -> TrainingData:
    """Put a stage's images on a device."""
    validation = None if images.validation is None else Examples.of(images.validation, device)
    return TrainingData(Examples.of(images.train, device), validation, images.statistics, images.num_classes)


def states_of(
    task: TrainingTask, data: TrainingData, worker: Worker, only_workers: int | None = None
) -> Iterator[TrainState]:
    """Train from the latest checkpoint and yield the state after each epoch (training/checkpoint.py).

    only_workers: use only checkpoints of as many workers. Raises DivergedError, OSError.
    """
    folder, sentinel = storage_path(task.checkpoints), storage_path(task.sentinel)
    checkpoints = Checkpoints.of_owner(folder, task.fencing_token, task.config, sentinel, only_workers)
    yield from fit_resumably(task.config, data, checkpoints, worker)


def run_trial(
    task: TrainingTask, data: TrainingData, worker: Worker, report: Callable[[EpochMetrics, StepMode | None], bool]
) -> TrialEnd:
    """Run one trial; `report` takes each epoch, those from a checkpoint too, and returns whether the trial goes on.

    `report` also gets the kind of steps, None where this process has taken none yet.
    An error is returned as a failure with its traceback rather than raised. So is a storage that is full, read-only
    or out of reach.
    """
    num_reported = 0
    state: TrainState | None = None
    try:
        for state in states_of(task, data, worker):
            for metrics in state.history[num_reported:]:
                if not report(metrics, state.steps):
                    return TrialEnd(steps=state.steps)
            num_reported = len(state.history)
    except DivergedError as error:
        return TrialEnd(Failure(str(error)), steps=state.steps if state else None)
    except Exception as error:
        trouble = (
            StorageFailure.from_error(error, storage_path(task.checkpoints)) if isinstance(error, OSError) else None
        )
        if trouble is not None:
            return TrialEnd(storage_failure=trouble)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return TrialEnd(Failure(reason, traceback.format_exc()), steps=state.steps if state else None)
    return TrialEnd(steps=state.steps if state else None)
