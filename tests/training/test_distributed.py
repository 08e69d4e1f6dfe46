"""Any number of workers trains the same network: real processes, real gloo groups, one thread each."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mnist_ray.config import TrainingConfig
from mnist_ray.data import LabelledImages, PixelStatistics, pixel_statistics
from mnist_ray.metrics import Score
from mnist_ray.training.batch_norm import GlobalBatchNorm2d
from mnist_ray.training.checkpoint import Checkpoints, SavedState, fit_resumably
from mnist_ray.training.distributed import Worker
from mnist_ray.training.evaluation import evaluate
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import DivergedError, TrainState, fit
from mnist_ray.training.model import FOLLOW_ROUNDING
from tests.training.all_parts import ALL_PARTS
from tests.training.groups import CALM_SEED, Group

MOST_WORKERS = 3

# --- what the workers run


@dataclass
class Trained:
    """What one rank has at the end. history: the rows of all epochs, without their times."""

    weights: dict[str, npt.NDArray[Any]]
    history: list[dict[str, Any]]
    saved: bytes  # the optimizer's state too

    @classmethod
    def of(cls, state: TrainState) -> "Trained":
        weights = {name: tensor.numpy() for name, tensor in state.shipped_model.state_dict().items()}
        history = [{**metrics.columns(), "elapsed_s": 0.0} for metrics in state.history]
        return cls(weights, history, SavedState.of(state).tensors)


def training_data(images: LabelledImages) -> TrainingData:
    """The first 40 are the validation split too: what is compared is whether workers agree."""
    cpu = torch.device("cpu")
    validation = images.take(np.arange(40))
    return TrainingData(Examples.of(images, cpu), Examples.of(validation, cpu), pixel_statistics(images.images))


def train(worker: Worker, images: LabelledImages, config: TrainingConfig, dtype: torch.dtype) -> Trained:
    data = training_data(images)
    state = TrainState.initial(config, data.statistics, worker, dtype)
    for _ in fit(state, data, config, worker):
        pass
    return Trained.of(state)


def train_until(worker: Worker, images: LabelledImages, config: TrainingConfig, folder: Path, last: int) -> Trained:
    """Go on from the checkpoints in `folder`, if there are any, and stop after epoch `last`."""
    state = None
    for state in fit_resumably(config, training_data(images), Checkpoints(folder, config, every_s=0.0), worker):
        if state.completed_epochs == last:
            break
    assert state is not None
    return Trained.of(state)


def train_on(
    worker: Worker,
    images: LabelledImages,
    config: TrainingConfig,
    dtype: torch.dtype,
    saved: SavedState | None,
    num_epochs: int,
) -> tuple[SavedState, Trained]:
    """So many epochs from `saved` on; a checkpoint keeps the type of its numbers."""
    data = training_data(images)
    state = TrainState.initial(config, data.statistics, worker, dtype)
    if saved is not None:
        saved.put_into(state)
    for _ in islice(fit(state, data, config, worker), num_epochs):
        pass
    return SavedState.of(state), Trained.of(state)


def diverge(worker: Worker, images: LabelledImages, config: TrainingConfig) -> str:
    data = training_data(images)
    state = TrainState.initial(config, data.statistics, worker)
    try:
        for _ in fit(state, data, config, worker):
            pass
    except DivergedError as error:
        return str(error)
    return "did not diverge"


def score(worker: Worker, images: LabelledImages, config: TrainingConfig) -> Score:
    state = TrainState.initial(config, PixelStatistics(0.2, 0.3), worker)
    return evaluate(state.model, Examples.of(images, worker.device), worker)


@dataclass
class Normalised:
    """One rank's part of a batch normalised over all ranks."""

    outputs: Tensor
    images_grad: Tensor
    weight_grad: Tensor
    bias_grad: Tensor
    running_mean: Tensor
    running_var: Tensor


def normalise(worker: Worker, images: Tensor, upstream: Tensor, weight: Tensor, bias: Tensor) -> Normalised:
    layer = GlobalBatchNorm2d(len(weight), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    share = worker.share_of(images).clone().requires_grad_()
    outputs = layer(share)
    outputs.backward(worker.share_of(upstream))
    tensors = (outputs, share.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var)
    return Normalised(*(tensor.detach() for tensor in tensors if tensor is not None))


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
        group = Group(MOST_WORKERS, tmp_path_factory.mktemp("workers"))
    yield group
    group.end()


# --- the same training


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"num_epochs": 3, "batch_size": 32, "dropout": 0.0, "seed": CALM_SEED, **changes})


def floating(trained: Trained) -> dict[str, npt.NDArray[Any]]:
    return {name: array for name, array in trained.weights.items() if array.dtype.kind == "f"}


def largest_differences(one: Trained, other: Trained) -> dict[str, float]:
    return {name: float(np.abs(array - floating(other)[name]).max()) for name, array in floating(one).items()}


def assert_agree_but_for_rounding(one: Trained, other: Trained) -> None:
    differences = largest_differences(one, other)
    assert max(difference for name, difference in differences.items() if name not in FOLLOW_ROUNDING) < 1e-3


def assert_ranks_agree(ranks: list[Trained]) -> None:
    for rank in ranks[1:]:
        assert rank.saved == ranks[0].saved
        assert rank.history == ranks[0].history


@pytest.fixture(scope="module")
def alone(group: Group, digits: LabelledImages) -> Callable[[int, torch.dtype], Trained]:
    """The training on one worker, done once for each number of examples and type."""
    done: dict[tuple[int, torch.dtype], Trained] = {}

    def train_alone(num_examples: int, dtype: torch.dtype) -> Trained:
        key = (num_examples, dtype)
        if key not in done:
            [done[key]] = group.run(1, train, digits.take(np.arange(num_examples)), config(), dtype)
        return done[key]

    return train_alone


# 333 = 10 * 32 + 13, and 321 = 10 * 32 + 1: there two of three workers have no example in the last batch.
@pytest.mark.parametrize(("world_size", "num_examples"), [(2, 333), (3, 333), (3, 321)])
def test_in_float64_all_weights_are_equal_after_33_steps(
    group: Group, digits: LabelledImages, alone: Callable[..., Trained], world_size: int, num_examples: int
) -> None:
    expected = alone(num_examples, torch.float64)
    ranks = group.run(world_size, train, digits.take(np.arange(num_examples)), config(), torch.float64)
    assert_ranks_agree(ranks)
    assert int(ranks[0].weights["blocks.0.1.num_batches_tracked"]) == 33
    differences = largest_differences(expected, ranks[0])
    assert max(differences.values()) < 1e-7, differences
    for ours, theirs in zip(ranks[0].history, expected.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
        assert ours["train_examples"] == num_examples
        assert ours["val_examples"] == 40


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_parts_keep_the_ranks_equal(group: Group, digits: LabelledImages, world_size: int) -> None:
    """The averaged weights, in float64; two of three ranks have no example in the last batch."""
    images, settings = digits.take(np.arange(321)), config(**ALL_PARTS)
    [expected] = group.run(1, train, images, settings, torch.float64)
    ranks = group.run(world_size, train, images, settings, torch.float64)
    assert_ranks_agree(ranks)
    assert max(largest_differences(expected, ranks[0]).values()) < 1e-7
    for ours, theirs in zip(ranks[0].history, expected.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)
        assert "val_raw_loss" in ours


@pytest.mark.parametrize("world_size", [2, 3])
def test_in_float32_losses_and_weights_agree(
    group: Group, digits: LabelledImages, alone: Callable[..., Trained], world_size: int
) -> None:
    expected = alone(333, torch.float32)
    ranks = group.run(world_size, train, digits.take(np.arange(333)), config(), torch.float32)
    assert_ranks_agree(ranks)
    for ours, theirs in zip(ranks[0].history, expected.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=5e-3)
    assert_agree_but_for_rounding(ranks[0], expected)


# --- stopping and going on


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    group: Group, digits: LabelledImages, tmp_path: Path, world_size: int, dropout: float
) -> None:
    """In a new process group, whose gradients must be added up in the same order."""
    images, settings = digits.take(np.arange(333)), config(dropout=dropout)
    expected = group.run(world_size, train_until, images, settings, tmp_path / "whole", 3)
    first = group.run(world_size, train_until, images, settings, tmp_path / "parts", 1)
    second = group.run(world_size, train_until, images, settings, tmp_path / "parts", 3)
    assert_ranks_agree(expected)
    assert_ranks_agree(second)
    assert len(first[0].history) == 1
    assert second[0].history == expected[0].history
    assert second[0].saved == expected[0].saved


def test_one_worker_goes_on_where_three_were_stopped(
    group: Group, digits: LabelledImages, alone: Callable[..., Trained], tmp_path: Path
) -> None:
    """A checkpoint knows nothing of the number of workers."""
    images = digits.take(np.arange(333))
    group.run(3, train_until, images, config(), tmp_path, 1)
    [resumed] = group.run(1, train_until, images, config(), tmp_path, 3)
    assert_agree_but_for_rounding(resumed, alone(333, torch.float32))


@pytest.mark.parametrize("world_sizes", [(2, 1, 2), (1, 3, 2)])
def test_in_float64_workers_that_come_and_go_change_no_weight(
    group: Group, digits: LabelledImages, alone: Callable[..., Trained], world_sizes: tuple[int, ...]
) -> None:
    """An epoch on each world; the last batch has one example, so that two of three workers have none."""
    images, saved = digits.take(np.arange(321)), None
    for world_size in world_sizes:
        ranks = group.run(world_size, train_on, images, config(), torch.float64, saved, 1)
        saved, trained = ranks[0]
    expected = alone(321, torch.float64)
    differences = largest_differences(expected, trained)
    assert max(differences.values()) < 1e-7, differences
    assert [row["train_examples"] for row in trained.history] == [321] * 3
    for ours, theirs in zip(trained.history, expected.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_divergence_is_noticed_by_every_rank_alike(group: Group, digits: LabelledImages) -> None:
    """Or one would wait for ever for the others."""
    said = group.run(3, diverge, digits.take(np.arange(100)), config(num_epochs=50, learning_rate=1e12))
    assert said[0].startswith("diverged: ")
    assert said == [said[0]] * 3


# --- the parts


@pytest.mark.parametrize("num_examples", [1, 2, 100, 1001])
def test_scores_merged_over_workers_are_the_score_of_the_whole(
    group: Group, digits: LabelledImages, num_examples: int
) -> None:
    """For fewer examples than workers too."""
    images = digits.take(np.arange(num_examples))
    [whole] = group.run(1, score, images, config())
    for world_size in (2, 3):
        scores = group.run(world_size, score, images, config())
        assert scores == [scores[0]] * world_size
        assert scores[0].num_examples == num_examples
        assert scores[0].num_correct == whole.num_correct
        assert scores[0].loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 12])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_normalised_as_a_whole_whoever_holds_it(
    group: Group, batch_size: int, layout: torch.memory_format
) -> None:
    """Torch's own on the whole batch is the reference; with 1 or 2 images some of the workers have none."""
    torch.manual_seed(batch_size)
    images = torch.randn(batch_size, 4, 3, 5, dtype=torch.float64).to(memory_format=layout)
    upstream = torch.randn(batch_size, 4, 3, 5, dtype=torch.float64).to(memory_format=layout)
    images += torch.arange(batch_size)[:, None, None, None]  # so that no share is like the whole
    weight, bias = (torch.rand(4, dtype=torch.float64) + 0.5 for _ in range(2))

    inputs = [tensor.clone().requires_grad_() for tensor in (images, weight, bias)]
    running_mean, running_var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    outputs = functional.batch_norm(
        inputs[0], running_mean, running_var, inputs[1], inputs[2], training=True, momentum=0.1
    )
    outputs.backward(upstream)

    ranks: list[Normalised] = group.run(3, normalise, images, upstream, weight, bias)
    assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)
    assert_close(torch.cat([rank.outputs for rank in ranks]), outputs.detach())
    assert_close(torch.cat([rank.images_grad for rank in ranks]), inputs[0].grad)
    assert_close(sum(rank.weight_grad for rank in ranks), inputs[1].grad)
    assert_close(sum(rank.bias_grad for rank in ranks), inputs[2].grad)
    for rank in ranks:
        assert_close(rank.running_mean, running_mean)
        assert_close(rank.running_var, running_var)
