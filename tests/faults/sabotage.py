"""Faults inside real training processes: they travel with the images that a process fetches before it trains."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from ray import cloudpickle

from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.loop import Steps, TrainState

# Its whole code travels, since workers need not find the tests' folder.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

Fault = Callable[[], None]


def sleep() -> None:
    time.sleep(3600)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hog_memory() -> None:
    """Take 4 GiB within seconds, and hold them until the process is killed."""
    held = [bytearray(b"x") * 2**28 for _ in range(16)]
    time.sleep(60 + len(held))


@dataclass(frozen=True)
class In:
    """Commit a fault on a rank in a step, counted from 1 in each process; once, of all processes that get there."""

    marker: Path
    rank: int
    step: int
    fault: Fault

    def commit(self) -> None:
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return
        self.fault()


@dataclass(frozen=True)
class SabotagedImages(SharedImages):
    """Images whose first fetch in a process puts faults into its training steps."""

    faults: tuple[In, ...]
    saves_every_epoch: bool = False

    def tensors(self, device: torch.device) -> TrainingData:
        _put_into_steps(self.faults)
        if self.saves_every_epoch:
            Checkpoints.save_if_due = _save  # type: ignore[method-assign, assignment]
        return super().tensors(device)


def sabotaged(images: SharedImages, *faults: In, saves_every_epoch: bool = False) -> SabotagedImages:
    return SabotagedImages(images.reference, faults, saves_every_epoch)


def _save(checkpoints: Checkpoints, state: TrainState, num_workers: int = 1) -> None:
    checkpoints.save(SavedState.of(state, num_workers))


def _put_into_steps(faults: tuple[In, ...]) -> None:
    original = Steps.take
    num_steps = 0

    def take(steps, share, global_batch_size):
        nonlocal num_steps
        num_steps += 1
        for fault in faults:
            if (fault.rank, fault.step) == (steps._worker.rank, num_steps):
                fault.commit()
        original(steps, share, global_batch_size)

    Steps.take = take  # type: ignore[method-assign]
