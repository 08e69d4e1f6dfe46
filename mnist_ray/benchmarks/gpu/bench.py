"""The machine, the images and the sizes of a benchmark of a GPU, and what a check found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from mnist_ray.config import Precision, TrainingConfig
from mnist_ray.data import LabelledImages, pixel_statistics
from mnist_ray.training import loop
from mnist_ray.training.cuda_graph import Capture, as_cuda_graph
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.kernels.selection import PLAIN
from mnist_ray.training.loop import Steps, TrainState, fit

ALL_PARTS: dict[str, Any] = {"schedule": "cosine", "ema": 0.1, "augment": 1.0, "weight_decay": 0.01}
ALLOWED_ACCURACY = 0.003  # between two trainings of few epochs that differ in rounding


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    is_ok: bool | None = None  # None: figures without a rule, or not run
    not_run: str | None = None  # the reason


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    num_images: int
    num_validation: int
    batch_sizes: tuple[int, ...]
    batch_size: int  # where one is enough
    num_steps_compared: int
    num_rounds: int
    num_steps_timed: int  # in each round
    num_epochs: int  # of the timed training
    num_eager_epochs: int
    num_together: tuple[int, ...]  # trainings on one GPU at a time
    num_epochs_together: int


FULL = Sizes(60_000, 5000, (32, 128, 512), 128, 200, 5, 200, 45, 5, (1, 2, 4, 8), 5)
REHEARSAL = Sizes(120, 40, (8, 16), 16, 3, 1, 2, 2, 1, (1, 2), 1)


@dataclass(frozen=True)
class Bench:
    """One device with its images. On a CPU everything is a rehearsal: what would be a captured step is computed."""

    device: torch.device
    images: LabelledImages

    @property
    def is_rehearsal(self) -> bool:
        return self.device.type != "cuda"

    @property
    def sizes(self) -> Sizes:
        return REHEARSAL if self.is_rehearsal else FULL

    @property
    def worker(self) -> Worker:
        return Worker(device=self.device)

    @property
    def capture(self) -> Capture:
        return (lambda compute: compute) if self.is_rehearsal else as_cuda_graph

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def data(self, device: torch.device | None = None) -> TrainingData:
        """Return all but the last images to train on, and those to validate with."""
        split = max(len(self.images) - self.sizes.num_validation, len(self.images) // 2)
        parts = (self.images.take(np.arange(split)), self.images.take(np.arange(split, len(self.images))))
        train, validation = (Examples.of(part, device or self.device) for part in parts)
        return TrainingData(train, validation, pixel_statistics(parts[0].images))

    def data_without_validation(self) -> TrainingData:
        """Return all images to train on."""
        return TrainingData(Examples.of(self.images, self.device), None, pixel_statistics(self.images.images))

    def steps(
        self,
        data: TrainingData,
        batch_size: int,
        precision: Precision = "float32",
        parts: Mapping[str, Any] = MappingProxyType({}),
        modules_of: Worker | None = None,
    ) -> Steps:
        """Return the steps of a new training in plain torch. parts: of its config.

        modules_of: the worker whose network it has, which is another one among several ranks.
        """
        config = TrainingConfig(num_epochs=1, batch_size=batch_size, precision=precision, **parts)
        state = TrainState.initial(config, data.statistics, modules_of or self.worker, kernels=PLAIN)
        steps = Steps.of(state, data.train, config, self.worker)
        steps.begin_epoch()
        return steps

    def train(self, data: TrainingData, config: TrainingConfig, capture: Capture | None) -> TrainState:
        """Train in plain torch by `fit`; capture: None for eager steps."""
        state = TrainState.initial(config, data.statistics, self.worker, kernels=PLAIN)
        with capturing(capture):
            for _ in fit(state, data, config, self.worker):
                pass
        return state


@contextmanager
def capturing(capture: Capture | None) -> Iterator[None]:
    """Let `fit` capture its steps so, whatever the device: a training has no setting for it."""
    with mock.patch.object(loop, "capture_for", return_value=capture):
        yield


def some_batches(num_examples: int, batch_size: int, num_batches: int, device: torch.device) -> list[Tensor]:
    """Draw batches at random, every tenth of the size of an epoch's last one."""
    generator = torch.Generator().manual_seed(1)
    sizes = [batch_size] * num_batches
    sizes[4::10] = [num_examples % batch_size or batch_size] * len(sizes[4::10])
    return [torch.randint(num_examples, (size,), generator=generator).to(device) for size in sizes]


def eagerly(steps: Steps) -> Callable[[Tensor], None]:
    """Compute each step."""
    return lambda indices: steps.compute(indices, len(indices))


def as_it_takes_them(steps: Steps) -> Callable[[Tensor], None]:
    """Replay where a step was captured."""
    return lambda indices: (steps.captured.get(len(indices)) or eagerly(steps))(indices)


def val_accuracy(state: TrainState) -> float:
    """Return the validation accuracy after the latest epoch."""
    validation = state.history[-1].validation
    assert validation is not None, "the data have no validation split"
    return validation.accuracy


def epochs_s(state: TrainState) -> float:
    """Return the seconds in all epochs."""
    return sum(metrics.elapsed_s for metrics in state.history)


def are_close(accuracies: Sequence[float]) -> bool:
    """Report whether no two accuracies differ by more than ALLOWED_ACCURACY."""
    return max(accuracies) - min(accuracies) <= ALLOWED_ACCURACY
