"""The messages of a group of workers, and of Ray Train's controller behind it, to the driver, and the group's task.

This module needs no torch, because the controller imports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mnist_ray.config import Retrain
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.tasks import RetrainingEnd, TrainingTask
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.storage.failures import StorageFailure


@dataclass(frozen=True)
class GroupTask:
    """The work of one group of workers."""

    tasks: Sequence[TrainingTask]
    images: SharedImages
    settings: Retrain
    mailbox: Any


def name_of(rank: int) -> str:
    """Return the name by which a rank sends heartbeats."""
    return f"rank {rank}"


@dataclass(frozen=True)
class EpochDone:
    """An epoch of a training."""

    id: str
    metrics: EpochMetrics


@dataclass(frozen=True)
class ControllerStarted:
    """The start of Ray Train's actor behind the group."""

    actor: Any
    run_id: str  # Ray Train's own


@dataclass(frozen=True)
class GroupStarting:
    """The coming start of a group; no worker of the group before is left."""

    num_workers: int


@dataclass(frozen=True)
class GroupEnded:
    """The end of the group by a failure; the group is started again, or given up."""

    reason: str
    is_preemption: bool


Message = EpochDone | RetrainingEnd | ControllerStarted | GroupStarting | GroupEnded | StorageFailure
