"""Retraining on several workers: Ray Train starts them, connects them, and starts them again when one dies."""

import contextlib
import logging
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from mnist_ray.config import Retrain, TrainingConfig
from mnist_ray.learning import pulse
from mnist_ray.learning.checkpoint import Checkpoints, fit_resumably, model_to_bytes
from mnist_ray.learning.training import DivergedError, TrainState, Worker
from mnist_ray.running.disks import DiskTrouble
from mnist_ray.running.heartbeat import HANG_LIMIT_S, Beat, Watch, beating, culprits, is_alive, start_inbox
from mnist_ray.running.shared_data import SharedData

logger = logging.getLogger(__name__)

POLL_S = 0.2
WAITING_NOTE_S = 60.0
COLLATERAL_S = 3.0


@dataclass(frozen=True)
class Retraining:
    """One training to be done by the group of workers."""

    id: str
    config: TrainingConfig
    checkpoints: Path  # its folder; below it each generation of owners has one
    generation: int


@dataclass(frozen=True)
class EpochDone:
    id: str
    row: dict[str, Any]


@dataclass(frozen=True)
class RetrainingDone:
    """The end of a retraining: its network as safetensors, or why there is none."""

    id: str
    model: bytes | None
    failure: str | None
    trace: str | None
    device: str
    num_failures: int = 0  # how often the group was started again meanwhile; preempted nodes do not count


@dataclass(frozen=True)
class GroupEnded:
    """The group of workers was ended by a failure; Ray Train starts it again, or gives up."""

    reason: str
    is_preemption: bool


Message = EpochDone | RetrainingDone

KINDS = {kind.__name__: kind for kind in (EpochDone, RetrainingDone, GroupEnded, DiskTrouble)}


def _packed(message: Any) -> dict[str, Any]:
    """In builtin types, so that the inbox need not import what it passes on."""
    return {"kind": type(message).__name__, **vars(message)}


def _unpacked(packed: dict[str, Any]) -> Any:
    return KINDS[packed["kind"]](**{key: value for key, value in packed.items() if key != "kind"})


class GroupFailedError(RuntimeError):
    """The workers died more often than `max_failures` allows, or could not be started; the last line says why."""


def retrain(
    trainings: Sequence[Retraining],
    data: SharedData,
    settings: Retrain,
    max_failures: int,
    ray_state: Path,
    receive: Callable[[Message], None],
    note: Callable[[str], None] = logger.warning,
    hang_limit_s: float = HANG_LIMIT_S,
) -> None:
    """Do the trainings one after another in one group of workers, which therefore starts only once.

    `receive` gets every message in order, in this process; `note` lines for people: what ended the group, and that
    it waits for workers. A rank that does not get on for `hang_limit_s` is ended as if it had died. Raises
    GroupFailedError, and OSError where checkpoints cannot be written because the disk is full or read-only.
    """
    inbox = start_inbox()
    trainer = TorchTrainer(
        _train_in_group,
        train_loop_config={"trainings": list(trainings), "data": data, "inbox": inbox, "settings": settings},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=_resources(settings),
        ),
        torch_config=TorchConfig(backend="nccl" if settings.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=f"retrain-{uuid.uuid4().hex[:8]}",
            storage_path=str(ray_state),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[_TellsFailures(inbox)],  # type: ignore[list-item]  # the hint is that of Train V1
        ),
    )
    supervisor = _Supervisor(inbox, settings, receive, note, hang_limit_s)
    fitted = _in_background(trainer.fit)
    try:
        finished = False
        while not finished:
            finished = fitted in wait([fitted], timeout=POLL_S).done
            supervisor.look()
        fitted.result()
    except (ray.train.TrainingFailedError, RayError) as error:
        raise GroupFailedError(f"{error}\n{supervisor.last_failure or ''}".rstrip()) from error
    finally:
        ray.kill(inbox)
    if supervisor.disk_trouble is not None:
        raise supervisor.disk_trouble.error()


def _in_background(call: Callable[[], Any]) -> "Future[Any]":
    """Call in a thread that does not outlive the process.

    On the main thread Ray Train takes SIGINT for itself, and ends the process with exit code 0.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    return future


def _resources(settings: Retrain) -> dict[str, float]:
    resources = {"CPU": float(settings.cpus_per_worker)}
    return resources | ({"GPU": float(settings.gpus_per_worker)} if settings.gpus_per_worker else {})


class _Supervisor:
    """What the driver does while the group trains: hands messages on, counts failures, ends a group that hangs."""

    def __init__(
        self,
        inbox: Any,
        settings: Retrain,
        receive: Callable[[Message], None],
        note: Callable[[str], None],
        hang_limit_s: float,
    ) -> None:
        self._inbox = inbox
        self._settings = settings
        self._receive = receive
        self._note = note
        self._watch = Watch(hang_limit_s)
        self._ranks = [_name_of(rank) for rank in range(settings.workers)]
        self._hang: str | None = None  # why the group is being ended
        self._num_failures = 0  # of the training in progress
        self._complete_at = time.monotonic()  # when all ranks were last there
        self._num_waiting_notes = 0
        self.last_failure: str | None = None
        self.disk_trouble: DiskTrouble | None = None

    def look(self) -> None:
        """Once every POLL_S. Raises RayError if the inbox is gone, and what `receive` raises."""
        messages, beats = ray.get(self._inbox.take.remote())
        self._follow(beats)
        for message in messages:
            self._take(_unpacked(message))
        self._end_if_hanging()
        self._say_if_waiting()

    def _follow(self, beats: Sequence[Beat]) -> None:
        if any(self._watch.replaces_another(beat) for beat in beats):
            self._watch.forget(self._ranks)  # the group was started again
        self._watch.look(beats)

    def _take(self, message: Message | GroupEnded | DiskTrouble) -> None:
        if isinstance(message, GroupEnded):
            self._count_failure(message)
        elif isinstance(message, DiskTrouble):
            self.disk_trouble = message
        elif isinstance(message, RetrainingDone):
            self._receive(replace(message, num_failures=self._num_failures))
            self._num_failures = 0
        else:
            self._receive(message)

    def _count_failure(self, ended: GroupEnded) -> None:
        reason, self._hang = self._hang or ended.reason, None
        if ended.is_preemption and reason == self.last_failure:
            return  # said again at every poll until the node is gone
        self.last_failure = reason
        self._num_failures += not ended.is_preemption
        self._watch.forget(self._ranks)
        self._note(f"the group of workers was ended: {reason}")

    def _end_if_hanging(self) -> None:
        """Start-up does not count, nor do ranks that have done their part."""
        hanging = self._watch.hanging()
        if not hanging or len(hanging) < len(self._watch.at_work()) or not self._is_complete():
            return
        blamed = culprits(hanging.values())
        self._watch.forget(self._ranks)
        if any(is_alive(one.beat.actor) for one in blamed):  # otherwise Ray Train is dealing with it
            self._hang = "; ".join(str(one) for one in blamed)
            for one in hanging.values():
                ray.kill(one.beat.actor)

    def _is_complete(self) -> bool:
        return self._watch.has_heard_of(self._ranks)

    def _say_if_waiting(self) -> None:
        if self._is_complete():
            self._complete_at, self._num_waiting_notes = time.monotonic(), 0
            return
        waited_s = time.monotonic() - self._complete_at
        if waited_s >= WAITING_NOTE_S * (self._num_waiting_notes + 1):
            self._num_waiting_notes += 1
            self._note(self._waiting_note(waited_s))

    def _waiting_note(self, waited_s: float) -> str:
        needed = ", ".join(f"{amount:g} {kind}" for kind, amount in _resources(self._settings).items())
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        has = ", ".join(f"{free.get(kind, 0):g} {kind}" for kind in _resources(self._settings))
        return (
            f"waiting for {self._settings.workers} workers of {needed} each to start, for {waited_s:.0f} s now; "
            f"the cluster has {has} free"
        )


def _name_of(rank: int) -> str:
    return f"rank {rank}"


class _TellsFailures(UserCallback):
    """In Ray Train's controller: tells the driver why a group was ended."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: getattr(error, "health_check_failure", error) for rank, error in worker_exceptions.items()}
        rank, cause = min(causes.items(), key=lambda item: _remoteness(item[1]))
        is_preemption = any(isinstance(error, RayActorError) and error.preempted for error in causes.values())
        ended = GroupEnded(f"{_name_of(rank)}: {_in_one_line(cause, is_preemption)}", is_preemption)
        self._inbox.put.remote(_packed(ended))


def _remoteness(error: Exception) -> int:
    """How far from the cause an error is: ranks that live on fail because another one has died."""
    return 0 if isinstance(error, OutOfMemoryError) else 1 if isinstance(error, RayActorError) else 2


def _in_one_line(error: Exception, is_preemption: bool) -> str:
    text = " ".join(str(error).split())[:300]
    if is_preemption:
        return f"its node was preempted, which does not count as a failure: {text}"
    if isinstance(error, OutOfMemoryError):
        return f"its process was killed because the node ran out of memory: {text}"
    if isinstance(error, RayActorError):
        return f"its process died: {text}"
    return f"{type(error).__name__}: {text}"


# --- in the workers


def _train_in_group(task: dict[str, Any]) -> None:
    """What each worker runs. Only rank 0 speaks to the driver."""
    settings: Retrain = task["settings"]
    torch.set_num_threads(settings.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    with beating(task["inbox"], _name_of(worker.rank)), _death_of_another_noticed_first():
        _do_open_trainings(task, worker)


def _do_open_trainings(task: dict[str, Any], worker: Worker) -> None:
    inbox = task["inbox"]
    data = task["data"].get(worker.device)
    ended = ray.get(inbox.ended.remote())  # by this group before it was started again
    for training in task["trainings"]:
        if training.id in ended:
            continue
        try:
            done = _train_one(training, data, worker, lambda message: _send(inbox, worker, message))
        except _CannotSaveError as error:
            _send(inbox, worker, error.trouble)
            return
        _send(inbox, worker, done, ends=training.id)


def _train_one(training: Retraining, data: Any, worker: Worker, send: Callable[[Message], None]) -> RetrainingDone:
    checkpoints = Checkpoints.of_generation(training.checkpoints, training.generation, training.config)
    num_sent = 0
    state: TrainState | None = None
    try:
        for state in _saved(fit_resumably(training.config, data, checkpoints, worker), training.checkpoints, worker):
            for row in state.history[num_sent:]:
                send(EpochDone(training.id, row))
            num_sent = len(state.history)
    except DivergedError as error:  # on every rank alike, so the group goes on with the next training together
        return RetrainingDone(training.id, None, str(error), traceback.format_exc(), worker.device.type)
    assert state is not None
    return RetrainingDone(training.id, model_to_bytes(state.model), None, None, worker.device.type)


class _CannotSaveError(Exception):
    """Rank 0 could not save a checkpoint; `trouble` is None on the other ranks."""

    def __init__(self, trouble: DiskTrouble | None) -> None:
        super().__init__("the disk of the checkpoints is full or read-only")
        self.trouble = trouble


def _saved(states: Iterator[TrainState], folder: Path, worker: Worker) -> Iterator[TrainState]:
    """The states, as long as rank 0 can save them.

    Then every rank raises _CannotSaveError, so that the group ends in order rather than by a failure, which Ray
    Train would answer with another start.
    """
    while True:
        state, trouble = None, None
        try:
            state = next(states, None)
        except OSError as error:
            trouble = DiskTrouble.of(error, folder)
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
        sent = inbox.put.remote(_packed(message), ends)
        if ends is not None:
            ray.get(sent)
