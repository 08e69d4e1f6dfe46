"""The fast kernels and plain torch take the same steps, all together and each alone, on one rank and on two."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnist_ray.config import TrainingConfig
from mnist_ray.data import LabelledImages, pixel_statistics
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.kernels.dropout import Dropout, draw_mask
from mnist_ray.training.kernels.flat_adam import FlatAdam
from mnist_ray.training.kernels.selection import AUTO, PLAIN, Kernels, kernels_for
from mnist_ray.training.loop import Steps, TrainState, fit
from mnist_ray.training.model import FOLLOW_ROUNDING
from mnist_ray.training.optimizer import TorchAdam
from tests.training.all_parts import ALL_PARTS
from tests.training.groups import CALM_SEED, Group

# Batches of 32 and a last one of 5: 10 steps an epoch, 30 in three.
NUM_EXAMPLES = 293
CONFIG = TrainingConfig(num_epochs=3, batch_size=32, dropout=0.0, seed=CALM_SEED)
# One kernel at a time, beside plain torch; masks are drawn in the order of memory, so those of both have to be alike.
ALONE = {field.name: dataclasses.replace(PLAIN, **{field.name: True}) for field in dataclasses.fields(Kernels)}
ALONE["dropout"] = dataclasses.replace(ALONE["dropout"], channels_last=True)


@dataclasses.dataclass(frozen=True)
class Trained:
    """The end of a training on one rank. losses: of each step, summed over the rank's share."""

    tensors: dict[str, np.ndarray]
    losses: list[float]
    history: list[dict[str, Any]]


def train(
    worker: Worker,
    images: LabelledImages,
    config: TrainingConfig,
    dtype: torch.dtype,
    kernels: Kernels,
    num_steps: int | None = None,
) -> Trained:
    """Train by `fit`, or for so many steps; with our masks, whatever draws them."""
    data = TrainingData(
        Examples.of(images, worker.device), Examples.of(images, worker.device), pixel_statistics(images.images)
    )
    state = TrainState.initial(config, data.statistics, worker, dtype, kernels)
    losses: list[float] = []
    with our_masks():
        if num_steps is None:
            list(fit(state, data, config, worker))
        else:
            steps = Steps.of(state, data.train, config, worker)
            steps.begin_epoch()
            torch.manual_seed(worker.rank)
            sums = [0.0]
            for batch in (torch.arange(num_steps * config.batch_size) % len(images)).split(config.batch_size):
                steps.take(worker.share_of(batch), len(batch))
                sums.append(float(steps.summed_loss()))
            losses = np.diff(sums).tolist()
    tensors = {name: tensor.detach().clone().numpy() for name, tensor in state.model.state_dict().items()}
    if state.average is not None:
        averaged = state.average.model.state_dict().items()
        tensors |= {f"average.{name}": tensor.clone().numpy() for name, tensor in averaged}
    return Trained(tensors, losses, [{**metrics.columns(), "elapsed_s": 0.0} for metrics in state.history])


class our_masks:
    """While the block lasts, torch's dropout draws its masks as ours does: in the order of channels last."""

    def __enter__(self) -> None:
        self._original = nn.Dropout.forward

        def forward(layer: nn.Dropout, values: Tensor) -> Tensor:
            if not layer.training or layer.p == 0.0:
                return values
            return values * draw_mask(values.contiguous(memory_format=torch.channels_last), layer.p)

        nn.Dropout.forward = forward  # type: ignore

    def __exit__(self, *exception: object) -> None:
        nn.Dropout.forward = self._original  # type: ignore[method-assign]


def assert_equal_in_float64(one: Trained, other: Trained) -> None:
    """Biases without a true gradient, and what follows them, may differ by Adam's steps of their rounding: 2e-8."""
    assert one.tensors.keys() == other.tensors.keys()
    differences = {name: float(np.abs(one.tensors[name] - other.tensors[name]).max()) for name in one.tensors}
    for name, difference in differences.items():
        assert difference < (1e-7 if name.removeprefix("average.") in FOLLOW_ROUNDING else 1e-8), differences


@pytest.fixture(scope="module")
def images(digits: LabelledImages) -> LabelledImages:
    return digits.take(np.arange(NUM_EXAMPLES))


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
        group = Group(2, tmp_path_factory.mktemp("workers"))
    yield group
    group.end()


@pytest.fixture(scope="module")
def plain(group: Group, images: LabelledImages) -> Callable[..., list[Trained]]:
    """Trainings by plain torch, each done once."""
    done: dict[tuple[int, float], list[Trained]] = {}

    def train_plainly(world_size: int, dropout: float) -> list[Trained]:
        key = (world_size, dropout)
        if key not in done:
            config = CONFIG.model_copy(update={"dropout": dropout})
            done[key] = group.run(world_size, train, images, config, torch.float64, PLAIN, kernels=PLAIN)
        return done[key]

    return train_plainly


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_auto_equals_plain_in_float64(
    group: Group, images: LabelledImages, plain: Callable[..., list[Trained]], world_size: int, dropout: float
) -> None:
    """After 30 steps, ragged ones among them; all tensors, and every column of the history."""
    config = CONFIG.model_copy(update={"dropout": dropout})
    ranks = group.run(world_size, train, images, config, torch.float64, AUTO, kernels=AUTO)
    for ours, reference in zip(ranks, plain(world_size, dropout), strict=True):
        assert ours.tensors["blocks.0.1.num_batches_tracked"] == 30
        assert_equal_in_float64(ours, reference)
        for row, expected in zip(ours.history, reference.history, strict=True):
            assert row == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_parts_keep_the_kernels_equal(group: Group, images: LabelledImages, world_size: int) -> None:
    config = CONFIG.model_copy(update={"dropout": 0.3, **ALL_PARTS})
    ours, reference = (
        group.run(world_size, train, images, config, torch.float64, kernels, kernels=kernels)
        for kernels in (AUTO, PLAIN)
    )
    for one, other in zip(ours, reference, strict=True):
        assert any(name.startswith("average.") for name in one.tensors)
        assert_equal_in_float64(one, other)


@pytest.mark.parametrize("name", ALONE)
def test_each_kernel_alone_equals_plain(
    group: Group, images: LabelledImages, plain: Callable[..., list[Trained]], name: str
) -> None:
    """On two ranks, with dropout."""
    config = CONFIG.model_copy(update={"dropout": 0.3})
    ranks = group.run(2, train, images, config, torch.float64, ALONE[name], kernels=ALONE[name])
    for ours, reference in zip(ranks, plain(2, 0.3), strict=True):
        assert_equal_in_float64(ours, reference)


def test_two_plain_ranks_equal_one(images: LabelledImages, plain: Callable[..., list[Trained]]) -> None:
    [alone] = plain(1, 0.0)
    for rank in plain(2, 0.0):
        assert_equal_in_float64(rank, alone)


@pytest.mark.parametrize("parts", [{}, ALL_PARTS], ids=["recipe", "all parts"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_float32_losses_agree(group: Group, images: LabelledImages, world_size: int, parts: dict[str, Any]) -> None:
    config = CONFIG.model_copy(update=parts)
    ours, reference = (
        group.run(world_size, train, images, config, torch.float32, kernels, 10, kernels=kernels)
        for kernels in (AUTO, PLAIN)
    )
    for one, other in zip(ours, reference, strict=True):
        assert len(one.losses) == 10
        assert one.losses == pytest.approx(other.losses, rel=1e-4)


def test_the_mode_and_the_device_select() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert kernels_for("auto", cpu) == AUTO
    assert kernels_for("plain", cpu) == kernels_for("auto", gpu) == kernels_for("plain", gpu) == PLAIN


def test_plain_is_torch_alone(few_digits: TrainingData) -> None:
    state = TrainState.initial(CONFIG.model_copy(update={"kernels": "plain"}), few_digits.statistics)
    assert isinstance(state.optimizer, TorchAdam)
    assert not any(isinstance(module, Dropout) for module in state.model.modules())
    assert all(parameter.is_contiguous() for parameter in state.model.parameters())
    fast = TrainState.initial(CONFIG, few_digits.statistics)
    assert isinstance(fast.optimizer, FlatAdam)
    assert any(isinstance(module, Dropout) for module in fast.model.modules())
    assert list(fast.model.state_dict()) == list(state.model.state_dict())
    assert set(state.model.state_dict()) > FOLLOW_ROUNDING


@pytest.mark.parametrize("kernels", [AUTO, PLAIN])
def test_either_goes_on_from_the_others_state(few_digits: TrainingData, kernels: Kernels) -> None:
    """A retraining may get or lose its GPUs between two sessions, and with them the fast kernels."""
    other = PLAIN if kernels == AUTO else AUTO
    ends = []
    for second in (kernels, other):
        first_state = TrainState.initial(CONFIG, few_digits.statistics, dtype=torch.float64, kernels=kernels)
        next(fit(first_state, few_digits, CONFIG))
        state = TrainState.initial(CONFIG, few_digits.statistics, dtype=torch.float64, kernels=second)
        SavedState.of(first_state).put_into(state)
        list(fit(state, few_digits, CONFIG))
        ends.append(state)
    for name, tensor in ends[0].model.state_dict().items():
        torch.testing.assert_close(tensor, ends[1].model.state_dict()[name], rtol=0, atol=1e-8)
    moments = [state.optimizer.state_dict() for state in ends]
    assert int(moments[0]["num_steps"]) == int(moments[1]["num_steps"]) == 12
    for name in ("mean", "mean_square"):
        torch.testing.assert_close(moments[0][name], moments[1][name], rtol=1e-6, atol=1e-9)


def test_a_checkpoint_of_other_kernels_is_not_used(tmp_path: Path) -> None:
    Checkpoints(tmp_path, CONFIG).save(SavedState(1, [], b""))
    assert Checkpoints(tmp_path, CONFIG).latest() is not None
    assert Checkpoints(tmp_path, CONFIG.model_copy(update={"kernels": "plain"})).latest() is None
