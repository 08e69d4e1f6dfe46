"""Retraining on several workers: Ray Train starts them, connects them, and starts them again when one dies."""

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2.api.config import ScalingConfig  # what ray.train.ScalingConfig is, but for its hints
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from mnist_ray.config import Retrain
from mnist_ray.ray_backend.heartbeat import HANG_LIMIT_S, start_inbox
from mnist_ray.ray_backend.shared_data import SharedData
from mnist_ray.ray_backend.train.messages import (
    ControllerStarted,
    GroupEnded,
    GroupStarting,
    Message,
    Retraining,
    packed,
)
from mnist_ray.ray_backend.train.process_group import GroupConfig
from mnist_ray.ray_backend.train.supervisor import Supervisor, resources_of
from mnist_ray.ray_backend.train.worker import name_of, train_in_group

logger = logging.getLogger(__name__)

POLL_S = 0.2

# How often Ray Train asks whether a group that runs could be larger. A change of size costs a start of about eight
# seconds, and what was trained since the last checkpoint; nodes that come within half a minute cost one. Ray looks at
# the cluster every 20 seconds only.
RESIZE_CHECK_S = 30.0
COORDINATOR_S = 5.0


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
    it waits for workers. A rank that does not get on for `hang_limit_s` is ended as if it had died. The group starts
    again at most `max_failures` times. Raises GroupFailedError, and OSError where checkpoints cannot be written
    because the disk is full or read-only.
    """
    supervisor = Supervisor(trainings, settings, receive, note, hang_limit_s)
    while True:
        try:
            return _run_group(supervisor, data, settings, max_failures - supervisor.num_failures, ray_state)
        except (RayError, ray.train.ControllerError) as error:  # Ray Train starts none but the workers again
            cause = error.controller_failure if isinstance(error, ray.train.ControllerError) else error
            supervisor.count_failure(GroupEnded(f"Ray's own process of the group: {_in_one_line(cause)}", False))
            if supervisor.num_failures > max_failures:
                raise GroupFailedError(str(supervisor.last_failure)) from error
            _remove_placement_groups()
        except ray.train.TrainingFailedError as error:
            raise GroupFailedError(f"{error}\n{supervisor.last_failure or ''}".rstrip()) from error


def _run_group(supervisor: Supervisor, data: SharedData, settings: Retrain, max_failures: int, ray_state: Path) -> None:
    """Do the open trainings.

    Raises OSError where a disk is full or read-only, TrainingFailedError where the workers died too often, and RayError
    or ControllerError if an actor dies that the group cannot do without.
    """
    inbox = start_inbox()
    task = {"trainings": supervisor.open_trainings, "data": data, "inbox": inbox, "settings": settings}
    trainer = TorchTrainer(
        train_in_group,
        train_loop_config=task,
        scaling_config=_scaling(settings),
        torch_config=GroupConfig(backend="nccl" if settings.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=f"retrain-{uuid.uuid4().hex[:8]}",
            storage_path=str(ray_state),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[_TellsFailures(inbox), _TellsStarts(inbox)],  # type: ignore[list-item]  # Train V1's hint
        ),
    )
    supervisor.begin(inbox)
    fitted = _in_background(trainer.fit)
    try:
        finished = False
        while not finished:
            finished = fitted in wait([fitted], timeout=POLL_S).done
            supervisor.look()
        fitted.result()
    finally:
        ray.kill(inbox)
        if supervisor.controller is not None:
            ray.kill(supervisor.controller.actor)  # with the controller its workers die too
            _withdraw_request(supervisor.controller.run_id)
    if supervisor.disk_trouble is not None:
        raise supervisor.disk_trouble.to_error()


def _scaling(settings: Retrain) -> ScalingConfig:
    return ScalingConfig(
        num_workers=settings.workers,
        elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
        use_gpu=settings.gpus_per_worker > 0,
        resources_per_worker=resources_of(settings),
    )


def _remove_placement_groups() -> None:
    """Free what the workers had: in Ray 2.60 that stays taken when the controller dies, until the job ends."""
    job_id = ray.get_runtime_context().get_job_id()  # which ends the ids of what the job has made
    for entry in placement_group_table().values():
        group_id = entry["placement_group_id"]
        if group_id.endswith(job_id) and entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def _withdraw_request(run_id: str) -> None:
    """Take back what a controller has asked the cluster for: it does so itself only when it ends in good order.

    For three minutes longer that would stay reserved for it, and an elastic group starts with what is left.
    """
    with _coordinator() as coordinator:
        ray.get(coordinator.cancel_request.remote(_requester(run_id)), timeout=COORDINATOR_S)


def _count_nodes_again(run_id: str) -> None:
    """Otherwise Ray Train learns up to 20 s later that a node is gone."""
    with _coordinator() as coordinator:
        ray.get(coordinator.get_reserved_resources.remote(_requester(run_id), recompute=True), timeout=COORDINATOR_S)


@contextlib.contextmanager
def _coordinator() -> Iterator[Any]:
    """Ray's actor that counts what the cluster has for whom; without it the block is left."""
    with contextlib.suppress(ValueError, RayError):
        yield ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")


def _requester(run_id: str) -> str:
    return f"train-{run_id}"


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


class _TellsFailures(UserCallback):
    """In Ray Train's controller: tells the driver why a group was ended."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: getattr(error, "health_check_failure", error) for rank, error in worker_exceptions.items()}
        rank, cause = min(causes.items(), key=lambda item: _remoteness(item[1]))
        is_preemption = any(isinstance(error, RayActorError) and error.preempted for error in causes.values())
        ended = GroupEnded(f"{name_of(rank)}: {_in_one_line(cause, is_preemption)}", is_preemption)
        self._inbox.put_about_group.remote(packed(ended))


class _TellsStarts(ControllerCallback, WorkerGroupCallback):
    """In Ray Train's controller: gives the driver its handle, for which Ray Train has no other way, and the size of
    each group that it is going to start.
    """

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox

    def after_controller_start(self, train_run_context: Any) -> None:
        actor = ray.get_runtime_context().current_actor
        self._run_id = train_run_context.run_id
        self._inbox.put.remote(packed(ControllerStarted(actor, self._run_id)))

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        _count_nodes_again(self._run_id)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._inbox.put_about_group.remote(packed(GroupStarting(worker_group_context.num_workers)))


def _remoteness(error: Exception) -> int:
    """How far from the cause an error is: ranks that live on fail because another one has died."""
    return 0 if isinstance(error, OutOfMemoryError) else 1 if isinstance(error, RayActorError) else 2


def _in_one_line(error: Exception, is_preemption: bool = False) -> str:
    if isinstance(error, RayTaskError):  # its text is a traceback, the cause the last line
        return str(error).strip().splitlines()[-1][:300]
    text = " ".join(str(error).split())[:300]
    if is_preemption:
        return f"its node was preempted, which does not count as a failure: {text}"
    if isinstance(error, OutOfMemoryError):
        return f"its process was killed because the node ran out of memory: {text}"
    if isinstance(error, RayActorError):
        return f"its process died: {text}"
    return f"{type(error).__name__}: {text}"
