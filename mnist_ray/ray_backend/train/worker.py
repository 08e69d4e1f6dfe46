"""What each worker of a group runs: trainings, one after another, told to the driver by rank 0."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist

from mnist_ray.config import Retrain
from mnist_ray.ray_backend.heartbeat import beating
from mnist_ray.ray_backend.train.messages import EpochDone, Message, Retraining, RetrainingDone, packed
from mnist_ray.storage.failures import StorageFailure
from mnist_ray.storage.files import StoragePath
from mnist_ray.training import progress_counter as pulse
from mnist_ray.training.checkpoint import Checkpoints, fit_resumably, model_to_bytes
from mnist_ray.training.kernels.collectives import connected_ranks
from mnist_ray.training.loop import DivergedError, TrainState, Worker
from mnist_ray.training.process import prepare_to_train

COLLATERAL_S = 3.0


def name_of(rank: int) -> str:
    return f"rank {rank}"


def train_in_group(task: dict[str, Any]) -> None:
    """What each worker runs. Only rank 0 speaks to the driver."""
    settings: Retrain = task["settings"]
    prepare_to_train(settings.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    with (
        beating(task["inbox"], name_of(worker.rank)),
        _death_of_another_noticed_first(),
        _connected(worker),
    ):
        _do_open_trainings(task, worker)


def _connected(worker: Worker) -> contextlib.AbstractContextManager[None]:
    """To the other ranks on the CPU; GPUs exchange over NCCL."""
    if worker.device.type != "cpu":
        return contextlib.nullcontext()
    return connected_ranks(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _do_open_trainings(task: dict[str, Any], worker: Worker) -> None:
    inbox = task["inbox"]
    data = task["data"].get(worker.device)
    ended = ray.get(inbox.ended.remote())  # by this group before it was started again
    for training in task["trainings"]:
        if training.id in ended:
            continue
        try:
            done = train_one(training, data, worker, lambda message: _send(inbox, worker, message))
        except _CannotSaveError as error:
            _send(inbox, worker, error.trouble)
            return
        _send(inbox, worker, done, ends=training.id)


def train_one(training: Retraining, data: Any, worker: Worker, send: Callable[[Message], None]) -> RetrainingDone:
    checkpoints = Checkpoints.of_generation(
        training.checkpoints, training.generation, training.config, training.must_see
    )
    num_sent = 0
    state: TrainState | None = None
    try:
        for state in _saved(fit_resumably(training.config, data, checkpoints, worker), training.checkpoints, worker):
            for row in state.history[num_sent:]:
                send(EpochDone(training.id, row))
            num_sent = len(state.history)
    except DivergedError as error:  # on every rank alike, so the group goes on with the next training together
        return RetrainingDone(
            training.id, None, str(error), traceback.format_exc(), worker.device.type, worker.world_size
        )
    assert state is not None
    return RetrainingDone(training.id, model_to_bytes(state.model), None, None, worker.device.type, worker.world_size)


class _CannotSaveError(Exception):
    """Rank 0 could not save a checkpoint; `trouble` is None on the other ranks."""

    def __init__(self, trouble: StorageFailure | None) -> None:
        super().__init__("the disk of the checkpoints is full or read-only")
        self.trouble = trouble


def _saved(states: Iterator[TrainState], folder: StoragePath, worker: Worker) -> Iterator[TrainState]:
    """The states, as long as rank 0 can save them.

    Then every rank raises _CannotSaveError, so that the group ends in order rather than by a failure, which Ray
    Train would answer with another start.
    """
    while True:
        state, trouble = None, None
        try:
            state = next(states, None)
        except OSError as error:
            trouble = StorageFailure.from_error(error, folder)
            if trouble is None:
                raise
        if _rank_0_says(trouble is not None, worker):
            raise _CannotSaveError(trouble)
        if state is None:
            return
        yield state


def _rank_0_says(answer: bool, worker: Worker) -> bool:
    if worker.world_size == 1:
        return answer
    said = torch.tensor([answer], dtype=torch.uint8, device=worker.device)
    pulse.mark()
    dist.broadcast(said, src=0)
    pulse.mark()
    return bool(said.item())


@contextlib.contextmanager
def _death_of_another_noticed_first() -> Iterator[None]:
    """Wait a little with an error that another rank's death may have caused.

    Connections break at once, Ray Train notices the death at its next poll; it would name and count the first error
    that it sees.
    """
    try:
        yield
    except RuntimeError:
        time.sleep(COLLATERAL_S)
        raise


def _send(inbox: Any, worker: Worker, message: Any, ends: str | None = None) -> None:
    """From rank 0; the end of a training is waited for, so that a new start of the group cannot miss it."""
    if worker.rank == 0:
        sent = inbox.put.remote(packed(message), ends)
        if ends is not None:
            ray.get(sent)
