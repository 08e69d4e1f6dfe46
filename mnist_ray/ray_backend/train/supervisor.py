"""The driver's part while groups of workers train: it reports their epochs, counts failures and ends what hangs."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from mnist_ray.config import Retrain
from mnist_ray.pipeline.backend import RetrainingReports
from mnist_ray.pipeline.tasks import RetrainingEnd, TrainingTask
from mnist_ray.ray_backend.heartbeat import ProgressMonitor, is_alive, origin_of_hang, take_from
from mnist_ray.ray_backend.train.messages import (
    ControllerStarted,
    EpochDone,
    GroupEnded,
    GroupStarting,
    Message,
    name_of,
)
from mnist_ray.storage.failures import StorageFailure

logger = logging.getLogger(__name__)

WAITING_NOTE_S = 60.0


class Supervisor:
    """Reports to the pipeline, counts failures, and kills groups that hang, over all groups that do the trainings."""

    def __init__(
        self,
        tasks: Sequence[TrainingTask],
        settings: Retrain,
        reports: RetrainingReports,
        hang_limit_s: float,
        name: str = "the group of workers",
    ) -> None:
        """name: of the group, for messages."""
        self._name = name
        self._open = list(tasks)
        self._settings = settings
        self._reports = reports
        self._monitor = ProgressMonitor(hang_limit_s)
        self._ranks = _names(settings.most_workers)  # of the group that trains or is to start
        self._num_workers_shown = settings.most_workers
        self._hang: str | None = None  # why the group is being ended
        self._failures_before = 0  # those of the trainings that have ended
        self.num_failures = 0  # preempted nodes do not count
        self.last_failure: str | None = None
        self.storage_failure: StorageFailure | None = None

    @property
    def open_tasks(self) -> list[TrainingTask]:
        """The trainings whose end has not been reported."""
        return list(self._open)

    def begin(self, mailbox: Any) -> None:
        """Follow a new group, whose processes send to `mailbox`."""
        self._mailbox = mailbox
        self.controller: ControllerStarted | None = None  # Ray Train's actor behind the group, once it runs
        self._monitor.forget(self._ranks)
        self._complete_at = time.monotonic()  # when all ranks last were at work
        self._num_waiting_notes = 0

    def look(self) -> None:
        """Take in what the group sent since the last look; called every POLL_S.

        Raises RayError if the mailbox is gone, and what `reports` raises.
        """
        messages, heartbeats = take_from(self._mailbox)
        for message in messages:
            self._take(message)
        self._reports.poll()
        self._monitor.look(heartbeat for heartbeat in heartbeats if heartbeat.name in self._ranks)
        self._end_if_hanging()
        self._log_if_waiting()

    def _take(self, message: Message) -> None:
        match message:
            case EpochDone() as epoch:
                self._reports.on_epoch(epoch.id, epoch.metrics)
            case RetrainingEnd() as end:
                num_failures = self.num_failures - self._failures_before
                self._reports.on_end(replace(end, execution=replace(end.execution, num_failures=num_failures)))
                self._failures_before = self.num_failures
                self._open = [task for task in self._open if task.id != end.id]
            case ControllerStarted() as controller:
                self.controller = controller
            case GroupStarting() as group:
                self._monitor.forget(self._ranks)
                self._ranks = _names(group.num_workers)
                self._hang = None  # the rank that hung was ended, by a failure or with a group of another size
            case GroupEnded() as ended:
                self.count_failure(ended)
            case StorageFailure() as trouble:
                self.storage_failure = trouble

    def count_failure(self, ended: GroupEnded) -> None:
        """Count the end of a group and log its reason."""
        reason, self._hang = self._hang or ended.reason, None
        if ended.is_preemption and reason == self.last_failure:
            return  # Ray Train repeats it at every poll until the node is gone
        self.last_failure = reason
        self.num_failures += not ended.is_preemption
        self._monitor.forget(self._ranks)
        logger.warning("%s was ended: %s", self._name, reason)

    def _end_if_hanging(self) -> None:
        """Kill all ranks if none makes progress; start-up does not count, nor do ranks that have done their part."""
        hanging = self._monitor.hanging()
        if not hanging or len(hanging) < len(self._monitor.at_work()) or not self._monitor.has_all(self._ranks):
            return
        origin = origin_of_hang(hanging.values())
        self._monitor.forget(self._ranks)
        if any(is_alive(process.heartbeat.actor) for process in origin):  # otherwise Ray Train is dealing with it
            self._hang = "; ".join(str(process) for process in origin)
            for process in hanging.values():
                ray.kill(process.heartbeat.actor)

    def _log_if_waiting(self) -> None:
        if self._monitor.has_all(self._ranks):
            self._complete_at, self._num_waiting_notes = time.monotonic(), 0
            if len(self._ranks) != self._num_workers_shown:
                self._num_workers_shown = len(self._ranks)
                logger.info(
                    "the retraining runs on %d of %s workers", len(self._ranks), self._settings.workers_in_words
                )
            return
        waited_s = time.monotonic() - self._complete_at
        if waited_s >= WAITING_NOTE_S * (self._num_waiting_notes + 1):
            self._num_waiting_notes += 1
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            needed = resources_of(self._settings)
            logger.warning(
                "waiting for %s workers of %s each to start, for %.0f s now; the cluster has %s free",
                self._settings.workers_in_words,
                ", ".join(f"{amount:g} {kind}" for kind, amount in needed.items()),
                waited_s,
                ", ".join(f"{free.get(kind, 0):g} {kind}" for kind in needed),
            )


def _names(num_workers: int) -> list[str]:
    return [name_of(rank) for rank in range(num_workers)]


def resources_of(settings: Retrain) -> dict[str, float]:
    """Return what one worker needs, by Ray's kinds of resources."""
    resources = {"CPU": float(settings.cpus_per_worker)}
    return resources | ({"GPU": float(settings.gpus_per_worker)} if settings.gpus_per_worker else {})
