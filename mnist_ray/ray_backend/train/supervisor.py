"""What the driver does while groups of workers train."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray

from mnist_ray.config import Retrain
from mnist_ray.ray_backend.heartbeat import Watch, culprits, is_alive
from mnist_ray.ray_backend.train.messages import (
    ControllerStarted,
    GroupEnded,
    GroupStarting,
    Message,
    Retraining,
    RetrainingDone,
    unpacked,
)
from mnist_ray.ray_backend.train.worker import name_of
from mnist_ray.storage.failures import StorageFailure

WAITING_NOTE_S = 60.0


class Supervisor:
    """Hands messages on, counts failures, and ends a group that hangs, over all groups that do the trainings."""

    def __init__(
        self,
        trainings: Sequence[Retraining],
        settings: Retrain,
        receive: Callable[[Message], None],
        note: Callable[[str], None],
        hang_limit_s: float,
    ) -> None:
        self._open = list(trainings)
        self._settings = settings
        self._receive = receive
        self._note = note
        self._watch = Watch(hang_limit_s)
        self._ranks = _names(settings.most_workers)  # of the group that trains or is to start
        self._num_workers_known = settings.most_workers  # to people
        self._hang: str | None = None  # why the group is being ended
        self._failures_before = 0  # those of the trainings that have ended
        self.num_failures = 0  # preempted nodes do not count
        self.last_failure: str | None = None
        self.disk_trouble: StorageFailure | None = None

    @property
    def open_trainings(self) -> list[Retraining]:
        """Those whose end has not been heard."""
        return list(self._open)

    def begin(self, inbox: Any) -> None:
        """A new group starts, which speaks to `inbox`."""
        self._inbox = inbox
        self.controller: ControllerStarted | None = None  # Ray Train's actor behind the group, once it runs
        self._watch.forget(self._ranks)
        self._complete_at = time.monotonic()  # when all ranks were last there
        self._num_waiting_notes = 0

    def look(self) -> None:
        """Once every POLL_S. Raises RayError if the inbox is gone, and what `receive` raises."""
        messages, beats = ray.get(self._inbox.take.remote())
        for message in messages:
            self._take(unpacked(message))
        self._watch.look(beat for beat in beats if beat.name in self._ranks)
        self._end_if_hanging()
        self._say_if_waiting()

    def _take(self, message: Message | ControllerStarted | GroupStarting | GroupEnded | StorageFailure) -> None:
        if isinstance(message, GroupEnded):
            self.count_failure(message)
        elif isinstance(message, GroupStarting):
            self._expect(message.num_workers)
        elif isinstance(message, ControllerStarted):
            self.controller = message
        elif isinstance(message, StorageFailure):
            self.disk_trouble = message
        elif isinstance(message, RetrainingDone):
            self._receive(replace(message, num_failures=self.num_failures - self._failures_before))
            self._failures_before = self.num_failures
            self._open = [training for training in self._open if training.id != message.id]
        else:
            self._receive(message)

    def _expect(self, num_workers: int) -> None:
        self._watch.forget(self._ranks)
        self._ranks = _names(num_workers)
        self._hang = None  # whoever hung has been ended, by a failure or with a group that was to have another size

    def count_failure(self, ended: GroupEnded) -> None:
        reason, self._hang = self._hang or ended.reason, None
        if ended.is_preemption and reason == self.last_failure:
            return  # said again at every poll until the node is gone
        self.last_failure = reason
        self.num_failures += not ended.is_preemption
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
            self._say_how_many()
            return
        waited_s = time.monotonic() - self._complete_at
        if waited_s >= WAITING_NOTE_S * (self._num_waiting_notes + 1):
            self._num_waiting_notes += 1
            self._note(self._waiting_note(waited_s))

    def _say_how_many(self) -> None:
        if len(self._ranks) != self._num_workers_known:
            self._num_workers_known = len(self._ranks)
            self._note(f"the retraining runs on {len(self._ranks)} of {self._settings.workers_in_words} workers")

    def _waiting_note(self, waited_s: float) -> str:
        needed = ", ".join(f"{amount:g} {kind}" for kind, amount in resources_of(self._settings).items())
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        has = ", ".join(f"{free.get(kind, 0):g} {kind}" for kind in resources_of(self._settings))
        return (
            f"waiting for {self._settings.workers_in_words} workers of {needed} each to start, "
            f"for {waited_s:.0f} s now; the cluster has {has} free"
        )


def _names(num_workers: int) -> list[str]:
    return [name_of(rank) for rank in range(num_workers)]


def resources_of(settings: Retrain) -> dict[str, float]:
    resources = {"CPU": float(settings.cpus_per_worker)}
    return resources | ({"GPU": float(settings.gpus_per_worker)} if settings.gpus_per_worker else {})
