"""Retraining on several workers: Ray Train starts them, connects them, and starts them again when one dies."""

import threading
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.config import Retrain, TrainingConfig
from mnist_ray.learning.checkpoint import Checkpoints, fit_resumably, model_to_bytes
from mnist_ray.learning.training import DivergedError, TrainState, Worker
from mnist_ray.running.shared_data import SharedData

POLL_S = 0.2


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


Message = EpochDone | RetrainingDone


class GroupFailedError(RuntimeError):
    """The workers died more often than `max_failures` allows, or could not be started."""


def retrain(
    trainings: Sequence[Retraining],
    data: SharedData,
    settings: Retrain,
    max_failures: int,
    ray_state: Path,
    receive: Callable[[Message], None],
) -> None:
    """Do the trainings one after another in one group of workers, which therefore starts only once.

    `receive` gets every message in order, in this process. Raises GroupFailedError.
    """
    inbox: Any = ray.remote(_Inbox).options(num_cpus=0, scheduling_strategy=_this_node()).remote()
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
        ),
    )
    fitted = _in_background(trainer.fit)
    finished = False
    while not finished:
        finished = fitted in wait([fitted], timeout=POLL_S).done
        for message in ray.get(inbox.take.remote()):
            receive(message)
    try:
        fitted.result()
    except ray.train.TrainingFailedError as error:
        raise GroupFailedError(str(error)) from error


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


def _this_node() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _train_in_group(task: dict[str, Any]) -> None:
    """What each worker runs. Only rank 0 speaks to the driver."""
    settings: Retrain = task["settings"]
    torch.set_num_threads(settings.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    data = task["data"].get(worker.device)
    for training in task["trainings"]:
        done = _train_one(training, data, worker, lambda message: _send(task["inbox"], worker, message))
        _send(task["inbox"], worker, done, wait=True)


def _train_one(training: Retraining, data: Any, worker: Worker, send: Callable[[Message], None]) -> RetrainingDone:
    checkpoints = Checkpoints.of_generation(training.checkpoints, training.generation, training.config)
    num_sent = 0
    state: TrainState | None = None
    try:
        for state in fit_resumably(training.config, data, checkpoints, worker):
            for row in state.history[num_sent:]:
                send(EpochDone(training.id, row))
            num_sent = len(state.history)
    except DivergedError as error:  # on every rank alike, so the group goes on with the next training together
        return RetrainingDone(training.id, None, str(error), traceback.format_exc(), worker.device.type)
    assert state is not None
    return RetrainingDone(training.id, model_to_bytes(state.model), None, None, worker.device.type)


def _send(inbox: Any, worker: Worker, message: Message, wait: bool = False) -> None:
    if worker.rank == 0:
        sent = inbox.put.remote(message)
        if wait:
            ray.get(sent)


class _Inbox:
    """Messages from the workers on their way to the driver."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def put(self, message: Message) -> None:
        self._messages.append(message)

    def take(self) -> list[Message]:
        taken, self._messages = self._messages, []
        return taken
