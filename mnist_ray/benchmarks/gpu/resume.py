"""A training that is interrupted and goes on from its checkpoint ends as one that is not, on the GPU and off it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from mnist_ray.benchmarks.gpu.bench import (
    ALL_PARTS,
    ALLOWED_ACCURACY,
    Bench,
    Check,
    are_close,
    capturing,
    val_accuracy,
)
from mnist_ray.config import TrainingConfig
from mnist_ray.training.checkpoint import Checkpoints, SavedState, fit_resumably
from mnist_ray.training.distributed import Worker
from mnist_ray.training.loop import TrainState

NUM_EPOCHS, NUM_BEFORE = 3, 2


def check_resume(bench: Bench) -> Iterator[Check]:
    """Train without an interruption, with one, and with one after which the CPU goes on."""
    config = TrainingConfig(num_epochs=NUM_EPOCHS, batch_size=bench.sizes.batch_size, **ALL_PARTS)
    with tempfile.TemporaryDirectory(prefix="mr-") as folder:
        whole = _trained(bench, config, Path(folder, "whole"), bench.device, NUM_EPOCHS)
        for name, device, is_same in (
            ("going on from a checkpoint", bench.device, True),
            ("going on from a GPU's checkpoint on the CPU", torch.device("cpu"), bench.is_rehearsal),
        ):
            own = Path(folder, name)
            _trained(bench, config, own, bench.device, NUM_BEFORE)
            resumed = _trained(bench, config, own, device, NUM_EPOCHS)
            accuracies = [val_accuracy(whole), val_accuracy(resumed)]
            epochs = [metrics.epoch for metrics in resumed.history]
            figures = {
                "steps": [whole.steps, resumed.steps],
                "val_accuracy": accuracies,
                "allowed": ALLOWED_ACCURACY,
                "bit_for_bit": is_same and SavedState.of(whole).tensors == SavedState.of(resumed).tensors,
            }
            yield Check(name, figures, epochs == list(range(1, NUM_EPOCHS + 1)) and are_close(accuracies))


def _trained(bench: Bench, config: TrainingConfig, folder: Path, device: torch.device, until: int) -> TrainState:
    """Train up to the epoch `until` from the latest checkpoint in `folder`, which each epoch leaves."""
    checkpoints = Checkpoints(folder, config, every_s=0)
    with capturing(bench.capture if device == bench.device else None):
        for state in fit_resumably(config, bench.data(device), checkpoints, Worker(device=device)):
            if state.completed_epochs == until:
                return state
    raise AssertionError(f"the training ended before epoch {until}")
