"""The training loop: one machine's part of one process group, without Ray.

`for report in fit(state, data, config, worker): ...` serves trials, retraining, tests and the benchmark alike.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mnist_ray.config import TrainingConfig
from mnist_ray.data import LabelledImages, PixelStatistics
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.training import progress_counter as pulse
from mnist_ray.training.cuda_graph import Capture, capture_for
from mnist_ray.training.kernels.collectives import summed_over_ranks
from mnist_ray.training.kernels.flat_adam import Adam
from mnist_ray.training.metrics import ScoreSums, summed_loss
from mnist_ray.training.model import MnistCNN

EVALUATION_BATCH_SIZE = 500


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number."""

    def __init__(self, epoch: int, name: str, loss: float) -> None:
        super().__init__(f"diverged: {name} is {loss} in epoch {epoch}")


@dataclass(frozen=True)
class Worker:
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    def share_of(self, batch: Tensor) -> Tensor:
        """batch: (B, ...) -> this rank's part of it; the parts' sizes differ by one at most."""
        start, end = (len(batch) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return batch[start:end]


@dataclass(frozen=True)
class Examples:
    """Tensors on the worker's device. images: (N, 1, 28, 28) uint8; labels: (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, data: LabelledImages, device: torch.device) -> "Examples":
        with warnings.catch_warnings():
            # Arrays from Ray's object store are read-only; nothing here writes to them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        return cls(images.to(device), labels.to(device))


@dataclass(frozen=True)
class TrainingData:
    train: Examples
    validation: Examples | None  # None where the final model also learns from the validation split
    statistics: PixelStatistics


@dataclass
class TrainState:
    """All that a training is between two epochs; randomness follows from (seed, epoch, rank) and needs no state."""

    model: MnistCNN
    optimizer: Adam
    completed_epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def initial(
        cls,
        config: TrainingConfig,
        statistics: PixelStatistics,
        worker: Worker = Worker(),
        dtype: torch.dtype = torch.float32,
    ) -> "TrainState":
        """The state before the first epoch; the same on every rank and for any number of ranks."""
        with _seeded(config.seed, "initial weights"):
            model = MnistCNN(config.dropout, statistics.mean, statistics.std, config.precision)
        model.to(worker.device, dtype)
        # Channels last in memory: a step takes about 0.7 times as long on the CPU.
        model.to(memory_format=torch.channels_last)
        return cls(model, Adam(model.parameters(), config.learning_rate))


def fit(
    state: TrainState, data: TrainingData, config: TrainingConfig, worker: Worker = Worker()
) -> Iterator[EpochMetrics]:
    """Train `state` in place up to `config.num_epochs`, yielding after each epoch; 2 + 2 epochs are 4.

    Where the world is larger than one, a process group is up and every rank runs this with the same arguments.
    Raises DivergedError (on every rank alike).
    """
    network = _over_global_batch(state.model, worker)
    steps = Steps(network, state.optimizer, data.train, worker, capture_for(worker.device, worker.world_size))
    while state.completed_epochs < config.num_epochs:
        started = time.perf_counter()
        epoch = state.completed_epochs + 1
        train = train_one_epoch(steps, len(data.train), config, epoch, worker)
        _check_finite(epoch, "train_loss", train.loss)
        validation = None
        if data.validation is not None:
            validation = evaluate(state.model, data.validation, worker)
            _check_finite(epoch, "val_loss", validation.loss)
        report = EpochMetrics(epoch, time.perf_counter() - started, train, validation)
        state.completed_epochs = epoch
        state.history.append(report.columns())
        yield report


class Steps:
    """Takes the steps of one training.

    On a GPU of its own a step is captured once for each size of batch and replayed: a network of this size would
    otherwise wait for Python to launch its hundred small kernels.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Adam,
        examples: Examples,
        worker: Worker,
        capture: Capture | None = None,
    ) -> None:
        """capture: how a step is captured; without it each is computed as it comes."""
        self._network = network
        self._optimizer = optimizer
        self._examples = examples
        self._worker = worker
        self._capture = capture
        self._captured: dict[int, tuple[Tensor, Callable[[], None]]] = {}
        self.sums = ScoreSums(worker.device)  # over the examples since the epoch began

    def begin_epoch(self) -> None:
        self._network.train()
        self.sums.reset()

    def take(self, share: Tensor, global_batch_size: int) -> None:
        """One optimizer step. share: (B,) int64, the indices of this rank's share of a global batch."""
        pulse.mark()
        self._optimizer.advance()
        if self._capture is None:
            self._compute(share, global_batch_size)
            return
        if global_batch_size not in self._captured:
            self._captured[global_batch_size] = self._captured_step(self._capture, share)
        indices, replay = self._captured[global_batch_size]
        indices.copy_(share)
        replay()

    def _captured_step(self, capture: Capture, share: Tensor) -> tuple[Tensor, Callable[[], None]]:
        indices = share.clone()
        changed = [*self._network.buffers(), *self._optimizer.tensors(), *self.sums.tensors()]
        return indices, capture(lambda: self._compute(indices, len(indices)), changed)

    def _compute(self, share: Tensor, global_batch_size: int) -> None:
        """The loss is a sum divided by the global count, and gradients are added up over ranks, so uneven shares weigh
        each example alike.
        """
        images, labels = self._examples.images[share], self._examples.labels[share]
        self._optimizer.zero_grad()
        logits = self._network(images)
        loss = summed_loss(logits, labels)
        (loss / global_batch_size).backward()
        summed_over_ranks(self._optimizer.gradient)
        self._optimizer.apply()
        self.sums.add(loss, logits, labels)


def train_one_epoch(steps: Steps, num_examples: int, config: TrainingConfig, epoch: int, worker: Worker) -> Score:
    """One pass over the examples in an order that depends on (seed, epoch) alone."""
    steps.begin_epoch()
    with _seeded(config.seed, "order", epoch):
        order = torch.randperm(num_examples).to(worker.device)
    with _seeded(config.seed, "dropout", epoch, worker.rank):
        for batch in order.split(config.batch_size):
            steps.take(worker.share_of(batch), len(batch))
    return steps.sums.merged()


def evaluate(model: nn.Module, examples: Examples, worker: Worker = Worker()) -> Score:
    """The score over all ranks, each example counted once: rank r takes r, r + world_size, and so on."""
    pulse.mark()
    sums = ScoreSums(worker.device)
    images, labels = (part[worker.rank :: worker.world_size] for part in (examples.images, examples.labels))
    for start in range(0, len(labels), EVALUATION_BATCH_SIZE):
        batch = slice(start, start + EVALUATION_BATCH_SIZE)
        logits = predict(model, images[batch])
        sums.add(summed_loss(logits, labels[batch]), logits, labels[batch])
    return sums.merged()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """images: (B, 1, 28, 28) uint8 -> logits: (B, 10), with dropout off."""
    model.eval()
    logits: Tensor = model(images)
    return logits


def _over_global_batch(model: MnistCNN, worker: Worker) -> nn.Module:
    """Batch normalisation of all ranks together; on the CPU the model sees to it itself."""
    if worker.world_size == 1:
        return model
    assert dist.is_initialized() and dist.get_world_size() == worker.world_size
    if worker.device.type == "cpu":
        return model
    network: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return network


def _check_finite(epoch: int, name: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(epoch, name, loss)


@contextmanager
def _seeded(*key: object) -> Iterator[None]:
    """Draw from torch's generators as `key` says, and leave them afterwards as they were."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        yield
