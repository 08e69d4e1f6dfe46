"""The ranks of a training as processes of their own, which can be held after an epoch and killed there.

Each is forked from one server that has imported torch, so that a new set of them costs a tenth of a second, and
each may be changed by a mutant: a way in which the program could be wrong, so that tests show that they notice.
"""

import hashlib
import signal
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mnist_ray.config import TrainingConfig
from mnist_ray.data import LabelledImages, pixel_statistics
from mnist_ray.metrics import EpochMetrics
from mnist_ray.training import loop as training
from mnist_ray.training.checkpoint import Checkpoints, SavedState, fit_resumably
from mnist_ray.training.distributed import Worker, gathered_from_ranks
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.kernels import dropout, flat_adam
from mnist_ray.training.loop import TrainState
from mnist_ray.training.process import group_on_this_machine

WAIT_S = 200.0  # for one answer of a rank; a tenth of a second is usual
IMPORTED_ONCE = ["pytest", "numpy", "torch", "torch.distributed", "mnist_ray.training.checkpoint"]

FOR_GOOD = pytest.MonkeyPatch()  # never undone: what it changes ends with its process
Mutant = Callable[[int], object]  # called in each process with its rank, before it trains


@dataclass(frozen=True)
class Plan:
    """The task of all ranks of one life."""

    images: LabelledImages
    config: TrainingConfig
    folder: Path  # of the checkpoints, one an epoch
    mutant: Mutant | None = None

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder, self.config, every_s=0.0)

    def data(self) -> TrainingData:
        """The first 40 are the validation split too: what is compared is whether two trainings agree."""
        cpu = torch.device("cpu")
        validation = Examples.of(self.images.take(np.arange(40)), cpu)
        return TrainingData(Examples.of(self.images, cpu), validation, pixel_statistics(self.images.images))


@dataclass
class Drawn:
    """The random draws in one epoch of one rank: hashes of the order and of the first dropout mask."""

    orders: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """The result of one rank, but for the seconds that it took.

    tensors: model and optimizer, as safetensors. drawn: by epoch, for those that this process did itself.
    """

    completed_epochs: int
    history: list[EpochMetrics]  # without the seconds
    tensors: bytes
    drawn: dict[int, Drawn]

    @classmethod
    def of(cls, state: TrainState, drawn: dict[int, Drawn]) -> "Trained":
        saved = SavedState.of(state)
        history = [replace(metrics, elapsed_s=0.0) for metrics in saved.history]
        return cls(saved.completed_epochs, history, saved.tensors, drawn)


# --- in the process of a rank


def run_rank(connection: Connection, rank: int, world_size: int, meeting_point: Path, plan: Plan, hold: int) -> None:
    """Send each epoch that is completed, and at the end the result; wait to be killed after epoch `hold`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)
    try:
        with group_on_this_machine(rank, world_size, meeting_point, WAIT_S / 2):
            if plan.mutant is not None:
                plan.mutant(rank)
            connection.send(_train(connection, Worker(rank, world_size), plan, hold))
    except BaseException:
        connection.send(traceback.format_exc())


def _train(connection: Connection, worker: Worker, plan: Plan, hold: int) -> Trained:
    drawn, current = {}, _recorded_draws()
    state = None
    for state in fit_resumably(plan.config, plan.data(), plan.checkpoints(), worker):
        if current.orders:  # not at the state of the checkpoint
            drawn[state.completed_epochs] = Drawn(list(current.orders), current.masks[:1])
            current.orders.clear()
            current.masks.clear()
        connection.send(state.completed_epochs)
        if hold and state.completed_epochs == hold:
            signal.pause()
    assert state is not None
    return Trained.of(state, drawn)


def _recorded_draws() -> Drawn:
    """Return the draws of this process from now on."""
    drawn = Drawn()
    _record(torch, "randperm", drawn.orders)
    _record(dropout, "draw_mask", drawn.masks)
    return drawn


def _record(module: Any, name: str, hashes: list[str]) -> None:
    original = getattr(module, name)

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        tensor: Tensor = original(*arguments, **options)
        hashes.append(hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest())
        return tensor

    FOR_GOOD.setattr(module, name, recorded)


# --- in the test's process


class Ranks:
    """One life of a training: `world_size` processes, from the latest checkpoint to the end or to being killed."""

    def __init__(self, world_size: int, plan: Plan, meeting_point: Path, hold: int = 0) -> None:
        """hold: the epoch after which they wait to be killed; 0 for none."""
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=run_rank, args=(theirs, rank, world_size, meeting_point, plan, hold), daemon=True
            )
            process.start()
            theirs.close()  # so that a dead process ends a wait for it
            self._connections.append(ours)
            self._processes.append(process)

    def wait_for_epoch(self, epoch: int) -> None:
        """Wait until every rank has completed the epoch, or a later one."""
        for rank, connection in enumerate(self._connections):
            answer: int | Trained = 0
            while isinstance(answer, int) and answer < epoch:
                answer = self._next(rank, connection)

    def results(self) -> list[Trained]:
        """Return the result of each rank."""
        try:
            return [self._result(rank, connection) for rank, connection in enumerate(self._connections)]
        finally:
            self.kill()

    def kill(self) -> list[int | None]:
        """Send SIGKILL to the processes that are left, and return the exit codes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(WAIT_S)
        for connection in self._connections:
            connection.close()
        return [process.exitcode for process in self._processes]

    def _result(self, rank: int, connection: Connection) -> Trained:
        while not isinstance(answer := self._next(rank, connection), Trained):
            pass
        return answer

    def _next(self, rank: int, connection: Connection) -> int | Trained:
        assert connection.poll(WAIT_S), f"rank {rank} did not answer within {WAIT_S:g} s"
        answer: int | Trained | str = connection.recv()
        assert not isinstance(answer, str), f"rank {rank}: {answer}"
        return answer


# --- mutants: ways to be wrong


def forget(part: str, only_rank: int | None, rank: int) -> None:
    """Bring `part` of the state back as it was in the beginning: tensors by the end of their name, or a field."""
    if only_rank not in (None, rank):
        return
    original = SavedState.put_into

    def put_into(saved: SavedState, state: TrainState) -> None:
        fields = {"completed_epochs": state.completed_epochs, "history": list(state.history)}
        tensors = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        original(saved, state)
        if part in fields:
            setattr(state, part, fields[part])
            return
        forgotten = [_put_back(state, name, tensors) for name in _names(state) if name.endswith(part)]
        assert forgotten, part

    FOR_GOOD.setattr(SavedState, "put_into", put_into)


def _names(state: TrainState) -> list[str]:
    return [*state.model.state_dict(), *(f"optimizer.{name}" for name in state.optimizer.state_dict())]


def _put_back(state: TrainState, name: str, initial: dict[str, Tensor]) -> str:
    if name in initial:
        with torch.no_grad():
            state.model.state_dict()[name].copy_(initial[name])
    else:
        moments, forgotten = state.optimizer.state_dict(), name.removeprefix("optimizer.")
        state.optimizer.load_state_dict(moments | {forgotten: torch.zeros_like(moments[forgotten])})
    return name


def seed_without(what: str, rank: int) -> None:
    """Seed each epoch's draws without the epoch, or each rank's without the rank."""
    original = training._seeded

    def without(*key: object) -> Any:
        return original(*{"epoch": key[:2] + key[3:], "rank": key[:3]}[what])

    FOR_GOOD.setattr(training, "_seeded", without)


def seed_once(rank: int) -> None:
    """Draw from a generator that is seeded when the process starts, and kept nowhere."""
    torch.manual_seed(rank)
    original = training._seeded

    def unless_for_dropout(*key: object) -> Any:
        return nullcontext() if "dropout" in key else original(*key)

    FOR_GOOD.setattr(training, "_seeded", unless_for_dropout)


def add_up_in_another_order(rank: int) -> None:
    """From the second step of a process on the gradients of the ranks are added up the other way round.

    DistributedDataParallel does it by default, when it rebuilds its buckets.
    """
    num_steps = 0

    def summed(gradient: Tensor) -> Tensor:
        nonlocal num_steps
        num_steps += 1
        parts = list(gathered_from_ranks(gradient))
        gradient.zero_()
        for part in parts if num_steps == 1 else reversed(parts):
            gradient.add_(part)
        return gradient

    FOR_GOOD.setattr(flat_adam, "summed_over_ranks", summed)
