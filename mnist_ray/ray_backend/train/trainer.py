"""Retraining on groups of workers: Ray Train starts them, connects them, and starts them again when one dies."""

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig

from mnist_ray.config import Retrain
from mnist_ray.pipeline.backend import RetrainingFailedError, RetrainingReports
from mnist_ray.pipeline.tasks import TrainingTask
from mnist_ray.ray_backend.compat import remove_placement_groups, trainer_without_helpers, withdraw_request
from mnist_ray.ray_backend.heartbeat import start_mailbox
from mnist_ray.ray_backend.prestart import VARIABLES_OF_RANKS
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.ray_backend.train.callbacks import FailureCallback, in_one_line, starts_reported_to
from mnist_ray.ray_backend.train.messages import GroupEnded, GroupTask
from mnist_ray.ray_backend.train.process_group import GroupConfig
from mnist_ray.ray_backend.train.supervisor import Supervisor, resources_of
from mnist_ray.ray_backend.train.worker import train_in_group

POLL_S = 0.2

# How often Ray Train asks whether a group that runs could be larger. A change of size costs a start of about eight
# seconds, and what was trained since the last checkpoint; nodes that come within half a minute cost one. Ray looks at
# the cluster every 20 seconds only.
RESIZE_CHECK_S = 30.0


@dataclass(frozen=True)
class GroupSettings:
    """What all groups of a stage have in common. ray_state: the folder for Ray Train's files."""

    images: SharedImages
    retrain: Retrain
    max_failures: int  # of each group
    ray_state: Path
    hang_limit_s: float


def retrain(
    tasks: Sequence[TrainingTask], num_groups: int, settings: GroupSettings, reports: RetrainingReports
) -> None:
    """Do the trainings in groups of workers that run side by side, in each group one after another.

    A group therefore starts only once. A group in which no rank makes progress for `hang_limit_s` is ended as if a
    worker had died. A group starts again at most `max_failures` times; one that has failed for good lets the others
    finish.

    Raises RetrainingFailedError, OSError where the storage of the checkpoints is full or read-only, and what `reports`
    raises.
    """
    groups = [
        Group(tasks[number::num_groups], settings, reports, _name(number, num_groups)) for number in range(num_groups)
    ]
    try:
        for group in groups:
            group.start()
        while running := [group for group in groups if group.is_running]:
            wait([group.fitted for group in running], timeout=POLL_S, return_when=FIRST_COMPLETED)
            for group in running:
                group.look()
    finally:
        for group in groups:
            group.stop()
    failures = [group.failure for group in groups if group.failure is not None]
    if failures:
        raise failures[0]


class Group:
    """A group of workers with its part of the trainings: a run of Ray Train.

    The run begins again when one of Ray's own processes dies.
    """

    fitted: "Future[Any]"  # the end of Ray Train's run

    def __init__(
        self, tasks: Sequence[TrainingTask], settings: GroupSettings, reports: RetrainingReports, name: str
    ) -> None:
        self._settings = settings
        self._supervisor = Supervisor(tasks, settings.retrain, reports, settings.hang_limit_s, name)
        self._mailbox: Any = None
        self.is_running = False
        self.failure: RetrainingFailedError | None = None

    def start(self) -> None:
        """Begin the trainings that are open."""
        self._mailbox = start_mailbox()
        self._supervisor.begin(self._mailbox)
        self.fitted = _in_background(self._trainer().fit)
        self.is_running = True

    def look(self) -> None:
        """Take in what the group has sent, and its end.

        Raises OSError where a disk is full or read-only, and what `reports` raises.
        """
        try:
            has_ended = self.fitted.done()
            self._supervisor.look()
            if has_ended:
                self.stop()
                self.fitted.result()
        except ray.train.TrainingFailedError as error:
            if isinstance(error, ray.train.ControllerError):
                self._start_again(error.controller_failure)
            else:
                reason = f"{error}\n{self._supervisor.last_failure or ''}".rstrip()
                self.failure = RetrainingFailedError(reason)
        except RayError as error:
            self._start_again(error)
        if self._supervisor.storage_failure is not None and not self.is_running:
            raise self._supervisor.storage_failure.to_error()

    def _start_again(self, cause: Exception) -> None:
        """Begin again after the loss of a process that is no worker: Ray Train starts only workers again."""
        self.stop()
        if self._supervisor.controller is not None:
            remove_placement_groups(self._supervisor.controller.actor)
        self._supervisor.count_failure(GroupEnded(f"Ray's own process of the group: {in_one_line(cause)}", False))
        if self._supervisor.num_failures > self._settings.max_failures:
            self.failure = RetrainingFailedError(str(self._supervisor.last_failure))
        else:
            self.start()

    def stop(self) -> None:
        """End the group's processes, and give back what they had. Other groups are left alone."""
        if not self.is_running:
            return
        self.is_running = False
        ray.kill(self._mailbox)
        controller = self._supervisor.controller
        if controller is not None:
            ray.kill(controller.actor)  # with the controller its workers die too
            withdraw_request(controller.run_id)

    def _trainer(self) -> Any:
        settings, retrain = self._settings, self._settings.retrain
        work = GroupTask(self._supervisor.open_tasks, settings.images, retrain, self._mailbox)
        return trainer_without_helpers()(
            _train_worker,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(
                num_workers=retrain.workers,  # type: ignore[arg-type]  # mypy sees the hints of Train's first version
                elastic_resize_monitor_interval_s=RESIZE_CHECK_S,  # type: ignore[call-arg]
                use_gpu=retrain.gpus_per_worker > 0,
                resources_per_worker=resources_of(retrain),
            ),
            torch_config=GroupConfig(backend="nccl" if retrain.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=f"retrain-{uuid.uuid4().hex[:8]}",
                storage_path=str(settings.ray_state),
                failure_config=FailureConfig(max_failures=settings.max_failures - self._supervisor.num_failures),
                callbacks=[FailureCallback(self._mailbox), starts_reported_to(self._mailbox)],  # type: ignore[list-item]  # the same
                worker_runtime_env={"env_vars": VARIABLES_OF_RANKS},  # type: ignore[call-arg]  # the same
            ),
        )


def _name(number: int, num_groups: int) -> str:
    return "the group of workers" if num_groups == 1 else f"group {number + 1} of {num_groups}"


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
