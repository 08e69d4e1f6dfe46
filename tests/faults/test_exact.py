"""Killed after any epoch and started again is not killed, bit for bit, on one, two and three workers."""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load

from mnist_ray.config import TrainingConfig
from mnist_ray.data import LabelledImages, load_training
from tests.faults.ranks import (
    Mutant,
    Plan,
    Ranks,
    Trained,
    add_up_in_another_order,
    forget,
    seed_once,
    seed_without,
)

# 141 = 4 * 32 + 13: the last batch is ragged, and so are the shares of three workers.
NUM_EXAMPLES = 141
CONFIG = TrainingConfig(num_epochs=5, batch_size=32, dropout=0.3, seed=8)
ANY_NUMBER = pytest.mark.parametrize("world_size", [1, 2, 3])


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """For the server that the processes are forked from: it keeps the environment that it started with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield


@pytest.fixture(scope="module")
def some_digits() -> LabelledImages:
    return load_training("digits", Path()).take(np.arange(NUM_EXAMPLES))


class Trainings:
    """Runs trainings below a folder; what needs no killing is done once for each number of workers."""

    def __init__(self, folder: Path, images: LabelledImages) -> None:
        self._folder = folder
        self._images = images
        self._num_lives = 0
        self._done: dict[tuple[str, int], list[Trained]] = {}

    def new_folder(self) -> Path:
        self._num_lives += 1
        return self._folder / f"checkpoints-{self._num_lives}"

    def live(self, world_size: int, folder: Path, mutant: Mutant | None = None, hold: int = 0) -> Ranks:
        self._num_lives += 1
        meeting_point = self._folder / f"meeting-{self._num_lives}"
        return Ranks(world_size, Plan(self._images, CONFIG, folder, mutant), meeting_point, hold)

    def killed_after(self, epoch: int, world_size: int, folder: Path, mutant: Mutant | None = None) -> None:
        ranks = self.live(world_size, folder, mutant, hold=epoch)
        try:
            ranks.wait_for_epoch(epoch)
        finally:
            exit_codes = ranks.kill()
        assert exit_codes == [-signal.SIGKILL] * world_size

    def uninterrupted(self, world_size: int) -> list[Trained]:
        key = ("uninterrupted", world_size)
        if key not in self._done:
            self._done[key] = self.live(world_size, self.new_folder()).results()
        return self._done[key]

    def half(self, world_size: int) -> Path:
        """A copy of the checkpoints of a training that was killed after its second epoch."""
        half = self._folder / f"half-{world_size}"
        if not half.exists():
            self.killed_after(2, world_size, half)
        return Path(shutil.copytree(half, self.new_folder()))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, some_digits: LabelledImages) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("trainings"), some_digits)


# --- what is compared


def differences(ours: list[Trained], expected: list[Trained]) -> list[str]:
    """In what the ranks ended with, and in what they drew in the epochs that both did."""
    found = []
    for rank, (one, other) in enumerate(zip(ours, expected, strict=True)):
        found += [f"rank {rank}: {name}" for name in _different(one, other)]
    return found


def _different(one: Trained, other: Trained) -> list[str]:
    found = [name for name in ("completed_epochs", "history") if getattr(one, name) != getattr(other, name)]
    tensors, others = load(one.tensors), load(other.tensors)
    found += [name for name in tensors.keys() | others.keys() if not _is_same(name, tensors, others)]
    shared = one.drawn.keys() & other.drawn.keys()
    found += [f"what is drawn in epoch {epoch}" for epoch in shared if one.drawn[epoch] != other.drawn[epoch]]
    assert (one.tensors == other.tensors) == all(_is_same(name, tensors, others) for name in tensors | others)
    return found


def _is_same(name: str, tensors: dict, others: dict) -> bool:
    """Bit for bit."""
    one, other = tensors.get(name), others.get(name)
    return one is not None and other is not None and one.numpy().tobytes() == other.numpy().tobytes()


def faults_of_drawing(ranks: list[Trained]) -> list[str]:
    """Each epoch has an order of its own, the same on every rank; each epoch of each rank has masks of its own."""
    orders = [[one.drawn[epoch].orders for epoch in sorted(one.drawn)] for one in ranks]
    masks = [one.drawn[epoch].masks[0] for one in ranks for epoch in sorted(one.drawn)]
    found = []
    if any(order != orders[0] for order in orders):
        found.append("ranks have different orders")
    if len({tuple(order) for order in orders[0]}) < len(orders[0]):
        found.append("two epochs have one order")
    if len(set(masks)) < len(masks):
        found.append("a mask is drawn twice")
    return found


def test_ranks_draw_what_they_should(trainings: Trainings) -> None:
    for world_size in (1, 2, 3):
        ranks = trainings.uninterrupted(world_size)
        assert faults_of_drawing(ranks) == []
        assert [sorted(one.drawn) for one in ranks] == [[1, 2, 3, 4, 5]] * world_size


@ANY_NUMBER
def test_the_ranks_agree(trainings: Trainings, world_size: int) -> None:
    first, *others = trainings.uninterrupted(world_size)
    assert [metrics.epoch for metrics in first.history] == [1, 2, 3, 4, 5]
    assert first.history[-1].train.loss < 0.7 * first.history[0].train.loss, "and it learns"
    for other in others:
        assert (other.tensors, other.history) == (first.tensors, first.history)


# --- killed


@ANY_NUMBER
def test_kills_after_every_epoch(trainings: Trainings, world_size: int) -> None:
    """Each life does one epoch and is killed, all of its processes."""
    folder = trainings.new_folder()
    for epoch in range(1, CONFIG.num_epochs):
        trainings.killed_after(epoch, world_size, folder)
    last = trainings.live(world_size, folder).results()
    assert [sorted(one.drawn) for one in last] == [[CONFIG.num_epochs]] * world_size, "only the last was left to do"
    assert differences(last, trainings.uninterrupted(world_size)) == []


@pytest.mark.parametrize("epoch", range(1, CONFIG.num_epochs + 1))
def test_one_kill_after_any_epoch(trainings: Trainings, epoch: int) -> None:
    """With three workers, where the order of adding up shows; after the last epoch nothing is left to do."""
    folder = trainings.new_folder()
    trainings.killed_after(epoch, 3, folder)
    last = trainings.live(3, folder).results()
    assert [sorted(one.drawn) for one in last] == [list(range(epoch + 1, CONFIG.num_epochs + 1))] * 3
    assert differences(last, trainings.uninterrupted(3)) == []


@pytest.mark.parametrize("world_size", [1, 3])
def test_kills_at_any_moment(trainings: Trainings, world_size: int) -> None:
    """Ranks go on while they are killed one by one, in the middle of steps and of writing checkpoints."""
    chance = random.Random(world_size)
    folder = trainings.new_folder()
    for epoch in range(1, CONFIG.num_epochs):
        ranks = trainings.live(world_size, folder)
        try:
            ranks.wait_for_epoch(epoch)
            time.sleep(chance.uniform(0, 0.05))
        finally:
            ranks.kill()
    assert differences(trainings.live(world_size, folder).results(), trainings.uninterrupted(world_size)) == []


def test_other_worker_counts_keep_the_order(trainings: Trainings) -> None:
    """Not bit for bit, which is why this is no case of the above, but through the same examples."""
    [resumed] = trainings.live(1, trainings.half(3)).results()
    [alone] = trainings.uninterrupted(1)
    assert {epoch: drawn.orders for epoch, drawn in resumed.drawn.items()} == {
        epoch: alone.drawn[epoch].orders for epoch in (3, 4, 5)
    }


# --- what the tests above would notice


PARTS = [
    *("blocks.0.0.weight", "blocks.1.0.bias", "head.weight"),
    *("blocks.0.1.running_mean", "blocks.1.1.running_var", "num_batches_tracked"),
    *("optimizer.mean", "optimizer.mean_square", "optimizer.num_steps"),
    *("completed_epochs", "history"),
]


@pytest.mark.parametrize("world_size", [2, 3])
def test_nothing_forgotten_changes_nothing(trainings: Trainings, world_size: int) -> None:
    """The mutants below change this, and nothing else."""
    ranks = trainings.live(world_size, trainings.half(world_size)).results()
    assert differences(ranks, trainings.uninterrupted(world_size)) == []


@pytest.mark.parametrize(("world_size", "part"), [(2 + number % 2, part) for number, part in enumerate(PARTS)])
def test_forgotten_state_is_noticed(trainings: Trainings, world_size: int, part: str) -> None:
    ranks = trainings.live(world_size, trainings.half(world_size), partial(forget, part, None)).results()
    assert differences(ranks, trainings.uninterrupted(world_size))


@pytest.mark.parametrize(
    "part", ["head.weight", "optimizer.mean", "optimizer.mean_square", "optimizer.num_steps", "history"]
)
def test_state_forgotten_by_one_rank(trainings: Trainings, part: str) -> None:
    ranks = trainings.live(2, trainings.half(2), partial(forget, part, 1)).results()
    assert differences(ranks, trainings.uninterrupted(2))


@pytest.mark.parametrize("what", ["epoch", "rank"])
def test_incomplete_seeds_are_noticed(trainings: Trainings, what: str) -> None:
    ranks = trainings.live(2, trainings.new_folder(), partial(seed_without, what)).results()
    assert faults_of_drawing(ranks)


def differences_under(trainings: Trainings, mutant: Mutant, world_size: int) -> list[str]:
    """Between a training that was killed after its second epoch and one that was not, both by a wrong program."""
    whole = trainings.live(world_size, trainings.new_folder(), mutant).results()
    folder = trainings.new_folder()
    trainings.killed_after(2, world_size, folder, mutant)
    return differences(trainings.live(world_size, folder, mutant).results(), whole)


@pytest.mark.parametrize("world_size", [1, 2])
def test_lost_random_state_is_noticed(trainings: Trainings, world_size: int) -> None:
    assert differences_under(trainings, seed_once, world_size)


def test_order_of_sums_is_noticed(trainings: Trainings) -> None:
    """With two there is but one order."""
    assert differences_under(trainings, add_up_in_another_order, 3)
