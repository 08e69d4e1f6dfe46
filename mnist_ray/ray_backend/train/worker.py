"""The work of each worker of a group: trainings, one after another, which rank 0 reports to the driver."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist

from mnist_ray.config import Retrain
from mnist_ray.pipeline.execution import states_of
from mnist_ray.pipeline.tasks import Execution, Failure, RetrainingEnd, TrainingTask
from mnist_ray.ray_backend.heartbeat import heartbeats, packed
from mnist_ray.ray_backend.train.messages import EpochDone, GroupTask, Message, name_of
from mnist_ray.storage.failures import StorageFailure
from mnist_ray.storage.files import storage_path
from mnist_ray.training import progress_counter
from mnist_ray.training.checkpoint import model_to_bytes
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.kernels.collectives import connected_ranks
from mnist_ray.training.kernels.selection import kernels_for
from mnist_ray.training.loop import DivergedError, TrainState
from mnist_ray.training.process import prepare_to_train

COLLATERAL_S = 3.0


def train_in_group(work: GroupTask) -> None:
    """Do the trainings in each worker of a group; only rank 0 sends messages to the driver."""
    prepare_to_train(work.settings.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    with (
        heartbeats(work.mailbox, name_of(worker.rank)),
        _lost_rank_noticed_first(),
        _connected(work.tasks, worker),
    ):
        _do_open_trainings(work, worker)


def _connected(tasks: Sequence[TrainingTask], worker: Worker) -> contextlib.AbstractContextManager[None]:
    """Connect to the other ranks, unless there are none or the trainings exchange over torch.distributed."""
    if worker.world_size == 1 or not all(kernels_for(task.config.kernels, worker.device).collectives for task in tasks):
        return contextlib.nullcontext()
    return connected_ranks(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _do_open_trainings(work: GroupTask, worker: Worker) -> None:
    data = work.images.tensors(worker.device)
    ended = ray.get(work.mailbox.ended.remote())  # by this group before it was started again
    for task in work.tasks:
        if task.id in ended:
            continue
        try:
            end = train_one(task, data, worker, work.settings, lambda message: _send(work.mailbox, worker, message))
        except _CannotSaveError as error:
            if error.trouble is not None:
                _send(work.mailbox, worker, error.trouble)
            return
        _send(work.mailbox, worker, end, ends=task.id)


def train_one(
    task: TrainingTask, data: TrainingData, worker: Worker, settings: Retrain, send: Callable[[Message], None]
) -> RetrainingEnd:
    """Do one training and send each epoch; a training that diverges ends with a failure.

    A training diverges on every rank alike, so the group goes on with the next one together.
    """
    num_sent = 0
    state: TrainState | None = None
    failure: Failure | None = None
    try:
        for state in _saved(states_of(task, data, worker), task, worker):
            for metrics in state.history[num_sent:]:
                send(EpochDone(task.id, metrics))
            num_sent = len(state.history)
    except DivergedError as error:
        failure = Failure(str(error), traceback.format_exc())
    model = model_to_bytes(state.shipped_model) if state is not None and failure is None else None
    steps = None if state is None else state.steps
    execution = Execution(worker.world_size, settings.cpus_per_worker, worker.device.type, num_failures=0, steps=steps)
    return RetrainingEnd(task.id, model, failure, execution)


class _CannotSaveError(Exception):
    """A checkpoint that rank 0 could not save; `trouble` is None on the other ranks."""

    def __init__(self, trouble: StorageFailure | None) -> None:
        super().__init__("the storage of the checkpoints is full or read-only")
        self.trouble = trouble


def _saved(states: Iterator[TrainState], task: TrainingTask, worker: Worker) -> Iterator[TrainState]:
    """Yield the states, as long as rank 0 can save them.

    Then every rank raises _CannotSaveError, so that the group ends in order rather than by a failure, which Ray
    Train would answer with another start.
    """
    while True:
        state, trouble = None, None
        try:
            state = next(states, None)
        except OSError as error:
            trouble = StorageFailure.from_error(error, storage_path(task.checkpoints))
            if trouble is None:
                raise
        if _broadcast_from_rank_0(trouble is not None, worker):
            raise _CannotSaveError(trouble)
        if state is None:
            return
        yield state


def _broadcast_from_rank_0(answer: bool, worker: Worker) -> bool:
    if worker.world_size == 1:
        return answer
    received = torch.tensor([answer], dtype=torch.uint8, device=worker.device)
    progress_counter.advance()
    dist.broadcast(received, src=0)
    progress_counter.advance()
    return bool(received.item())


@contextlib.contextmanager
def _lost_rank_noticed_first() -> Iterator[None]:
    """Hold back for COLLATERAL_S an error that the loss of another rank may have caused.

    Connections break at once, Ray Train notices the loss at its next poll. Ray Train would otherwise name and count
    the error, which is the first that it sees.
    """
    try:
        yield
    except RuntimeError:
        time.sleep(COLLATERAL_S)
        raise


def _send(mailbox: Any, worker: Worker, message: Message, ends: str | None = None) -> None:
    """Send a message from rank 0; the end of a training is waited for, so that a new start of the group finds it."""
    if worker.rank == 0:
        sent = mailbox.put.remote(packed(message), ends)
        if ends is not None:
            ray.get(sent)
