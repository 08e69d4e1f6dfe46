"""The training loop: one process's part of one training, without Ray.

`for metrics in fit(state, data, config, worker): ...` serves trials, retraining, tests and the benchmark alike.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mnist_ray.config import StepMode, TrainingConfig
from mnist_ray.data import NUM_CLASSES, PixelStatistics
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.training import progress_counter
from mnist_ray.training.augment import NUM_DRAWN, Augmentation
from mnist_ray.training.averaging import WeightAverage
from mnist_ray.training.cuda_graph import CapturedStep, capture_for, captured_and_compared
from mnist_ray.training.distributed import Worker, num_ranks
from mnist_ray.training.evaluation import evaluate
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.kernels.selection import Kernels, kernels_for
from mnist_ray.training.metrics import ScoreSums, summed_loss
from mnist_ray.training.model import FOLLOW_ROUNDING, MnistCNN
from mnist_ray.training.optimizer import Optimizer, optimizer_for
from mnist_ray.training.schedule import rate_factor


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number."""

    def __init__(self, epoch: int, name: str, loss: float) -> None:
        super().__init__(f"diverged: {name} is {loss} in epoch {epoch}")


@dataclass
class TrainState:
    """The whole state of a training between two epochs; randomness follows from (seed, epoch, rank) and is no state."""

    model: MnistCNN
    optimizer: Optimizer
    average: WeightAverage | None = None  # of the model's weights, where config.ema is on
    completed_epochs: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    steps: StepMode = "eager"  # the way that steps are taken, once `fit` has begun; not part of a checkpoint

    @classmethod
    def initial(
        cls,
        config: TrainingConfig,
        statistics: PixelStatistics,
        worker: Worker = Worker(),
        dtype: torch.dtype = torch.float32,
        kernels: Kernels | None = None,
        num_classes: int = NUM_CLASSES,
    ) -> "TrainState":
        """Make the state before the first epoch; the same on every rank and for any number of ranks.

        kernels: instead of those that follow from config and device.
        """
        kernels = kernels or kernels_for(config.kernels, worker.device)
        with _seeded(config.seed, "initial weights"):
            model = MnistCNN(config.dropout, statistics.mean, statistics.std, config.precision, kernels, num_classes)
        if worker.world_size > 1 and worker.device.type != "cpu":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place
        model.to(worker.device, dtype)
        if kernels.channels_last:
            model.to(memory_format=torch.channels_last)
        average = WeightAverage(model, config.ema) if config.ema else None
        optimizer = optimizer_for(model.parameters(), config.learning_rate, config.weight_decay, kernels)
        return cls(model, optimizer, average)

    @property
    def shipped_model(self) -> MnistCNN:
        """The model that a training is judged by and leaves: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.model


def fit(
    state: TrainState, data: TrainingData, config: TrainingConfig, worker: Worker = Worker()
) -> Iterator[EpochMetrics]:
    """Train `state` in place up to `config.num_epochs`, yielding after each epoch; 2 + 2 epochs are 4.

    Where the world is larger than one, a process group is up and every rank runs this with the same arguments.
    Raises DivergedError (on every rank alike).
    """
    assert num_ranks() == worker.world_size
    if state.completed_epochs >= config.num_epochs:
        return
    steps = Steps.of(state, data.train, config, worker)
    capture = capture_for(worker.device, worker.world_size)
    if capture is not None:
        steps.captured = captured_and_compared(steps, len(data.train), config.batch_size, worker.device, capture)
    state.steps = "captured" if steps.captured else "eager"
    while state.completed_epochs < config.num_epochs:
        started = time.perf_counter()
        epoch = state.completed_epochs + 1
        train = train_one_epoch(steps, len(data.train), config, epoch, worker)
        _check_finite(epoch, "train_loss", train.loss)
        validation, raw_validation = None, None
        if data.validation is not None:
            validation = evaluate(state.shipped_model, data.validation, worker)
            _check_finite(epoch, "val_loss", validation.loss)
            if state.average is not None:
                raw_validation = evaluate(state.model, data.validation, worker)
                _check_finite(epoch, "val_raw_loss", raw_validation.loss)
        metrics = EpochMetrics(epoch, time.perf_counter() - started, train, validation, raw_validation)
        state.completed_epochs = epoch
        state.history.append(metrics)
        yield metrics


class Steps:
    """The steps of one training.

    On a GPU of its own a training replays steps that were captured once for each size of batch: a network of this size
    would otherwise wait for Python to launch its hundred small kernels.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        examples: Examples,
        worker: Worker,
        rate_factor_of: Callable[[int], float] = lambda step: 1.0,
        average: WeightAverage | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        """rate_factor_of: from the number of a step, counted from 1, to what multiplies its learning rate."""
        self._network = network
        self._optimizer = optimizer
        self._examples = examples
        self._worker = worker
        self._rate_factor_of = rate_factor_of
        self._average = average
        self._augmentation = augmentation
        self.sums = ScoreSums(worker.device)  # over the examples since the epoch began
        self.captured: Mapping[int, CapturedStep] = {}  # by size of batch; other sizes are computed eagerly

    @classmethod
    def of(cls, state: TrainState, examples: Examples, config: TrainingConfig, worker: Worker) -> "Steps":
        """Return the steps of a training with all the parts that its config has."""
        num_steps = config.num_epochs * math.ceil(len(examples) / config.batch_size)
        return cls(
            state.model,
            state.optimizer,
            examples,
            worker,
            lambda step: rate_factor(config.schedule, config.warmup, step, num_steps),
            state.average,
            Augmentation(examples, config.augment) if config.augment else None,
        )

    def begin_epoch(self) -> None:
        """Switch to training and start the epoch's sums."""
        self._network.train()
        self.sums.reset()

    def augment(self, order: Tensor, drawn: Tensor) -> None:
        """Change images, where this training does, as `drawn` (N, 5) says for the positions in `order` (N,) int64."""
        if self._augmentation is not None:
            self._augmentation.begin_epoch(order, drawn)

    def take(self, share: Tensor, global_batch_size: int) -> None:
        """Take one optimizer step. share: (B,) int64, the indices of this rank's share of a global batch."""
        self.advance()
        captured = self.captured.get(global_batch_size)
        if captured is None:
            self.compute(share, global_batch_size)
        else:
            captured(share)

    def advance(self) -> None:
        """Go on to the next step's number."""
        progress_counter.advance()
        step = self._optimizer.num_steps + 1
        self._optimizer.advance(self._rate_factor_of(step))
        if self._average is not None:
            self._average.advance(step)

    def compute(self, share: Tensor, global_batch_size: int) -> None:
        """Compute the step that `advance` went on to; on GPUs only operations on the device.

        The loss is a sum divided by the global count, and gradients are added up over ranks, so uneven shares weigh
        each example alike.
        """
        images, labels = self._examples.images[share], self._examples.labels[share]
        if self._augmentation is not None:
            images = self._augmentation(images, share)
        self._optimizer.zero_grad()
        logits = self._network(images)
        loss = summed_loss(logits, labels)
        (loss / global_batch_size).backward()
        self._optimizer.sum_gradients()
        self._optimizer.apply()
        if self._average is not None:
            self._average.move()
        self.sums.add(loss, logits, labels)

    # --- for the comparison of captured steps with eager ones

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undo on leaving the block whatever was done in it to the model, the optimizer and the random state."""
        modules = [self._network] if self._average is None else [self._network, self._average.model]
        models, optimizer = [_copied(each.state_dict()) for each in modules], _copied(self._optimizer.state_dict())
        with torch.random.fork_rng(_devices_with_random_state()):
            self.begin_epoch()
            try:
                yield
            finally:
                for module, tensors in zip(modules, models, strict=True):
                    module.load_state_dict(tensors)
                self._optimizer.load_state_dict(optimizer)

    def summed_loss(self) -> Tensor:
        """Return a copy of the loss summed since the epoch began: ()."""
        return self.sums.loss()

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the network's tensors that do not follow rounding: each buffer, and parameters: (P,)."""
        weights = _without_rounding(self._network)
        if self._average is not None:
            weights |= {f"average {name}": each for name, each in _without_rounding(self._average.model).items()}
        return weights


def train_one_epoch(steps: Steps, num_examples: int, config: TrainingConfig, epoch: int, worker: Worker) -> Score:
    """Pass once over the examples, in an order that depends on (seed, epoch) alone."""
    steps.begin_epoch()
    with _seeded(config.seed, "order", epoch):
        order = torch.randperm(num_examples).to(worker.device)
    if config.augment:
        with _seeded(config.seed, "augment", epoch):
            steps.augment(order, 2 * torch.rand(num_examples, NUM_DRAWN) - 1)
    with _seeded(config.seed, "dropout", epoch, worker.rank):
        for batch in order.split(config.batch_size):
            steps.take(worker.share_of(batch), len(batch))
    return steps.sums.merged()


def _check_finite(epoch: int, name: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(epoch, name, loss)


def _without_rounding(network: nn.Module) -> dict[str, Tensor]:
    named = [each.detach().flatten() for name, each in network.named_parameters() if name not in FOLLOW_ROUNDING]
    buffers = {name: each for name, each in network.named_buffers() if name not in FOLLOW_ROUNDING}
    return {"parameters": torch.cat(named), **_copied(buffers)}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@contextmanager
def _seeded(*key: object) -> Iterator[None]:
    """Draw from torch's generators as `key` says, and leave them afterwards as they were."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    with torch.random.fork_rng(_devices_with_random_state()):
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        yield


def _devices_with_random_state() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
