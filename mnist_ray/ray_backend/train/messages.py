"""What the driver and the group of workers tell each other."""

from dataclasses import dataclass
from typing import Any

from mnist_ray.config import TrainingConfig
from mnist_ray.storage.failures import StorageFailure
from mnist_ray.storage.files import StoragePath


@dataclass(frozen=True)
class Retraining:
    """One training to be done by the group of workers."""

    id: str
    config: TrainingConfig
    checkpoints: StoragePath  # its folder; below it each generation of owners has one
    generation: int
    must_see: StoragePath | None = None  # a file that is there, unless the node has other storage under the same name


@dataclass(frozen=True)
class EpochDone:
    id: str
    row: dict[str, Any]


@dataclass(frozen=True)
class RetrainingDone:
    """The end of a retraining: its network as safetensors, or why there is none."""

    id: str
    model: bytes | None
    failure: str | None
    trace: str | None
    device: str
    workers: int  # of the group that ended it
    num_failures: int = 0  # how often the group was started again meanwhile; preempted nodes do not count


@dataclass(frozen=True)
class ControllerStarted:
    """Ray Train's actor behind the group runs."""

    actor: Any
    run_id: str  # Ray Train's own


@dataclass(frozen=True)
class GroupStarting:
    """Of the group before, if there was one, no worker is left; the next one is to have so many."""

    num_workers: int


@dataclass(frozen=True)
class GroupEnded:
    """The group of workers was ended by a failure; it is started again, or given up."""

    reason: str
    is_preemption: bool


Message = EpochDone | RetrainingDone

KINDS = {
    kind.__name__: kind
    for kind in (EpochDone, RetrainingDone, ControllerStarted, GroupStarting, GroupEnded, StorageFailure)
}


def packed(message: Any) -> dict[str, Any]:
    """In builtin types, so that the inbox need not import what it passes on."""
    return {"kind": type(message).__name__, **vars(message)}


def unpacked(packed: dict[str, Any]) -> Any:
    return KINDS[packed["kind"]](**{key: value for key, value in packed.items() if key != "kind"})
