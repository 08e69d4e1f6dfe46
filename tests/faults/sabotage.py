"""Faults inside real training processes: they travel in the data that a process fetches before it trains."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from ray import cloudpickle

from mnist_ray.ray_backend.shared_data import SharedData
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from mnist_ray.training.loop import Steps, TrainingData

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
    """Take 4 GiB within seconds, and hold them until somebody objects."""
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
class SabotagedData(SharedData):
    """Data whose first fetch in a process puts faults into its training steps."""

    faults: tuple[In, ...]
    saves_every_epoch: bool = False

    def get(self, device: torch.device) -> TrainingData:
        _put_into_steps(self.faults)
        if self.saves_every_epoch:
            Checkpoints.save_if_due = lambda self, state: self.save(SavedState.of(state))  # type: ignore[method-assign]
        return super().get(device)


def sabotaged(data: SharedData, *faults: In) -> SabotagedData:
    return SabotagedData(data.train, data.validation, data.statistics, faults)


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
