"""Retraining on several workers: Ray Train starts them, connects them, and starts them again when one dies."""

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from mnist_ray.config import Retrain
from mnist_ray.pipeline.backend import RetrainingFailedError, RetrainingReports
from mnist_ray.pipeline.tasks import TrainingTask
from mnist_ray.ray_backend.compat import (
    OUT_OF_MEMORY,
    cause_of,
    remove_placement_groups,
    start_callback,
    withdraw_request,
)
from mnist_ray.ray_backend.heartbeat import start_mailbox
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.ray_backend.train.messages import ControllerStarted, GroupEnded, GroupStarting
from mnist_ray.ray_backend.train.process_group import GroupConfig
from mnist_ray.ray_backend.train.supervisor import Supervisor, resources_of
from mnist_ray.ray_backend.train.worker import GroupTask, name_of, train_in_group

logger = logging.getLogger(__name__)

POLL_S = 0.2

# How often Ray Train asks whether a group that runs could be larger. A change of size costs a start of about eight
# seconds, and what was trained since the last checkpoint; nodes that come within half a minute cost one. Ray looks at
# the cluster every 20 seconds only.
RESIZE_CHECK_S = 30.0


def retrain(
    tasks: Sequence[TrainingTask],
    images: SharedImages,
    settings: Retrain,
    max_failures: int,
    reports: RetrainingReports,
    ray_state: Path,
    hang_limit_s: float,
) -> None:
    """Do the trainings one after another in one group of workers, which therefore starts only once.

    A group in which no rank makes progress for `hang_limit_s` is ended as if a worker had died. The group starts again
    at most `max_failures` times. ray_state: the folder for Ray Train's files.

    Raises RetrainingFailedError, OSError where the storage of the checkpoints is full or read-only, and what `reports`
    raises.
    """
    supervisor = Supervisor(tasks, settings, reports, hang_limit_s)
    while True:
        try:
            return _run_group(supervisor, images, settings, max_failures - supervisor.num_failures, ray_state)
        except (RayError, ray.train.ControllerError) as error:  # Ray Train starts none but the workers again
            cause = error.controller_failure if isinstance(error, ray.train.ControllerError) else error
            supervisor.count_failure(GroupEnded(f"Ray's own process of the group: {_in_one_line(cause)}", False))
            if supervisor.num_failures > max_failures:
                raise RetrainingFailedError(str(supervisor.last_failure)) from error
            remove_placement_groups()
        except ray.train.TrainingFailedError as error:
            raise RetrainingFailedError(f"{error}\n{supervisor.last_failure or ''}".rstrip()) from error


def _run_group(
    supervisor: Supervisor, images: SharedImages, settings: Retrain, max_failures: int, ray_state: Path
) -> None:
    """Do the open trainings.

    Raises OSError where a disk is full or read-only, TrainingFailedError where the workers died too often, and RayError
    or ControllerError if an actor dies that the group cannot do without.
    """
    mailbox = start_mailbox()
    work = GroupTask(supervisor.open_tasks, images, settings, mailbox)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"work": work},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,  # type: ignore[arg-type]  # mypy sees the hints of Train's first version
            elastic_resize_monitor_interval_s=RESIZE_CHECK_S,  # type: ignore[call-arg]
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources_of(settings),
        ),
        torch_config=GroupConfig(backend="nccl" if settings.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=f"retrain-{uuid.uuid4().hex[:8]}",
            storage_path=str(ray_state),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[_FailureCallback(mailbox), _start_callback(mailbox)],  # type: ignore[list-item]  # the same
        ),
    )
    supervisor.begin(mailbox)
    fitted = _in_background(trainer.fit)
    try:
        finished = False
        while not finished:
            finished = fitted in wait([fitted], timeout=POLL_S).done
            supervisor.look()
        fitted.result()
    finally:
        ray.kill(mailbox)
        if supervisor.controller is not None:
            ray.kill(supervisor.controller.actor)  # with the controller its workers die too
            withdraw_request(supervisor.controller.run_id)
    if supervisor.storage_failure is not None:
        raise supervisor.storage_failure.to_error()


def _train_worker(config: dict[str, GroupTask]) -> None:
    train_in_group(config["work"])


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


class _FailureCallback(UserCallback):
    """The part of Ray Train's controller that sends the driver why a group was ended."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: cause_of(error) for rank, error in worker_exceptions.items()}
        rank, cause = min(causes.items(), key=lambda item: _distance_from_cause(item[1]))
        is_preemption = any(isinstance(error, RayActorError) and error.preempted for error in causes.values())
        ended = GroupEnded(f"{name_of(rank)}: {_in_one_line(cause, is_preemption)}", is_preemption)
        self._mailbox.put_about_group.remote(ended)


def _start_callback(mailbox: Any) -> Any:
    """Return the part of Ray Train's controller that sends the driver its handle and the size of each new group."""

    def send_handle(run_id: str) -> None:
        actor = ray.get_runtime_context().current_actor
        mailbox.put.remote(ControllerStarted(actor, run_id))

    def send_size(num_workers: int) -> None:
        mailbox.put_about_group.remote(GroupStarting(num_workers))

    return start_callback(send_handle, send_size)


def _distance_from_cause(error: Exception) -> int:
    """Rank errors by how far they are from the cause: ranks that live on fail because another one has died."""
    return 0 if isinstance(error, OutOfMemoryError) else 1 if isinstance(error, RayActorError) else 2


def _in_one_line(error: Exception, is_preemption: bool = False) -> str:
    if isinstance(error, RayTaskError):  # its text is a traceback, the cause the last line
        return str(error).strip().splitlines()[-1][:300]
    text = " ".join(str(error).split())[:300]
    if is_preemption:
        return f"its node was preempted, which does not count as a failure: {text}"
    if isinstance(error, OutOfMemoryError):
        return f"{OUT_OF_MEMORY}: {text}"
    if isinstance(error, RayActorError):
        return f"its process died: {text}"
    return f"{type(error).__name__}: {text}"
