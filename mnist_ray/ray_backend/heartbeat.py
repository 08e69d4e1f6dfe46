"""Signs of life of the processes that train, and what the driver makes of them.

Each process beats to an inbox, an actor beside the driver. The driver looks into it, and a process that lives but
does not get on is named and ended; Ray then starts it again like any other that died. A process that is stopped, or
stuck in code that holds Python's lock, does not beat, and is found by that. Without torch, so that the inbox is
there within a second.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.training import progress_counter as pulse

logger = logging.getLogger(__name__)

BEAT_S = 2.0
HANG_LIMIT_S = 120.0
LIMITS_TO_START = 3  # as many times the limit until the first mark: imports alone took 20 s on a crowded machine
LONGEST_LOOK_S = 5.0
NUM_FRAMES = 6


@dataclass(frozen=True)
class Beat:
    """One sign of life of a training process."""

    name: str  # what it trains, or which rank it is
    host: str
    pid: int
    actor: Any  # Ray's handle of the process
    number: int  # of this process's beats for this training, counted from 0
    num_marks: int  # how far it has got (training/progress_counter.py)
    where: str  # the innermost Python frames of the thread that trains
    is_last: bool  # the training has left its function

    @property
    def process(self) -> tuple[str, int]:
        return self.host, self.pid


class Inbox:
    """What the training processes tell the driver, until it asks."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._beats: dict[str, Beat] = {}
        self._ended: set[str] = set()

    def put(self, message: dict[str, Any], ends: str | None = None) -> None:
        """ends: the training that the message ends."""
        self._messages.append(message)
        if ends is not None:
            self._ended.add(ends)

    def put_about_group(self, message: dict[str, Any]) -> None:
        """That it has ended, or starts: who has beaten until now is gone."""
        self._beats = {}
        self.put(message)

    def ended(self) -> set[str]:
        """The trainings that are done, for a group that was started again."""
        return self._ended

    def beat(self, beat: Beat) -> None:
        self._beats[beat.name] = beat

    def take(self) -> tuple[list[dict[str, Any]], list[Beat]]:
        """All messages since the last call, and the latest beat of each who has beaten since.

        Beats are later than all messages about the group.
        """
        taken = self._messages, list(self._beats.values())
        self._messages, self._beats = [], {}
        return taken


def start_inbox(max_restarts: int = 0) -> Any:
    """max_restarts: where what it has not handed on yet may be lost; -1 for any number."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Inbox)
        .options(num_cpus=0, scheduling_strategy=here, max_restarts=max_restarts, max_task_retries=max_restarts)
        .remote()
    )


@contextlib.contextmanager
def beating(inbox: Any, name: str) -> Iterator[None]:
    """Inside an actor: send a beat of the calling thread's work at once, every BEAT_S, and when the block is left."""
    actor, thread_id = ray.get_runtime_context().current_actor, threading.get_ident()
    is_over = threading.Event()

    def send(number: int, is_last: bool) -> None:
        where = innermost_frames(thread_id)
        beat = Beat(name, socket.gethostname(), os.getpid(), actor, number, pulse.num_marks(), where, is_last)
        inbox.beat.remote(beat)

    def send_all() -> None:
        number = 0
        send(number, is_last=False)
        while not is_over.wait(BEAT_S):
            number += 1
            send(number, is_last=False)
        send(number + 1, is_last=True)

    threading.Thread(target=send_all, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def innermost_frames(thread_id: int) -> str:
    """Where a thread of this process is: "take (training/loop.py:182), called by ...", innermost first.

    Between that and the project's own functions lie many of torch's and of importing; private ones are left out.
    """
    frame = sys._current_frames().get(thread_id)
    places: list[str] = []
    while frame is not None and len(places) < NUM_FRAMES:
        name = frame.f_code.co_name
        if not places or not name.startswith("_"):
            file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
            places.append(f"{name} ({file}:{frame.f_lineno})")
        frame = frame.f_back
    return ", called by ".join(places)


@dataclass(frozen=True)
class Followed:
    """A process as the driver knows it; seconds as `Watch` counts them."""

    beat: Beat
    silent_s: float  # since its last beat
    still_s: float  # since it last got on

    def __str__(self) -> str:
        who = f"{self.beat.name} (process {self.beat.pid} on {self.beat.host})"
        return f"{who} has not got on for {self.still_s:.0f} s, last seen in {self.beat.where}"


class Watch:
    """Follows the beats of processes; only time in which the driver itself was looking counts.

    So a driver that was held up, or a machine that slept, takes nobody for hanging when it wakes.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._clock_s = 0.0
        self._looked_at = time.monotonic()
        self._beats: dict[str, Beat] = {}
        self._heard_at: dict[str, float] = {}
        self._moved_at: dict[str, float] = {}

    def look(self, beats: Iterable[Beat]) -> None:
        """beats: those since the last look."""
        now = time.monotonic()
        self._clock_s += min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at = now
        for beat in beats:
            known = self._beats.get(beat.name)
            if known is None or known.process != beat.process or known.num_marks != beat.num_marks:
                self._moved_at[beat.name] = self._clock_s
            self._heard_at[beat.name] = self._clock_s
            self._beats[beat.name] = beat

    def forget(self, names: Collection[str]) -> None:
        for name in names:
            for known in (self._beats, self._heard_at, self._moved_at):
                known.pop(name, None)

    def forget_all_but(self, names: Collection[str]) -> None:
        self.forget([name for name in self._beats if name not in names])

    def has_heard_of(self, names: Collection[str]) -> bool:
        return all(name in self._beats for name in names)

    def at_work(self) -> dict[str, Followed]:
        """Those that have beaten and have not left, by name."""
        return {
            name: Followed(beat, self._clock_s - self._heard_at[name], self._clock_s - self._moved_at[name])
            for name, beat in self._beats.items()
            if not beat.is_last
        }

    def hanging(self) -> dict[str, Followed]:
        """Those of `at_work` that have not got on for the limit, or not begun for LIMITS_TO_START times that."""
        return {name: one for name, one in self.at_work().items() if one.still_s >= self._limit_of(one)}

    def _limit_of(self, one: Followed) -> float:
        return self._limit_s if one.beat.num_marks else LIMITS_TO_START * self._limit_s


def culprits(group: Iterable[Followed]) -> list[Followed]:
    """Of a group in which nobody gets on: who does not beat, else who is behind; the others wait for them."""
    group = list(group)
    silent = [one for one in group if one.silent_s > max(one.still_s / 2, 1.5 * BEAT_S)]
    behind = min(one.beat.num_marks for one in group)
    return silent or [one for one in group if one.beat.num_marks == behind]


def is_alive(actor: Any) -> bool:
    """Whether an actor's process exists; one that does not answer within three seconds does."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=3.0)
    except ray.exceptions.GetTimeoutError:
        return True
    except ray.exceptions.RayError:
        return False
    return True


class TrialWatch:
    """Ends the processes of trials that hang."""

    def __init__(self, limit_s: float = HANG_LIMIT_S) -> None:
        self._watch = Watch(limit_s)
        self._next_look = 0.0

    @cached_property
    def inbox(self) -> Any:
        """Started when it is first asked for. It only passes on beats, of which there are always more."""
        return start_inbox(max_restarts=-1)

    def end_hanging(self, in_flight: Collection[str]) -> dict[str, str]:
        """Look, at most once a second; why each trial whose process was ended had to be."""
        if time.monotonic() < self._next_look:
            return {}
        self._next_look = time.monotonic() + 1.0
        try:
            _, beats = ray.get(self.inbox.take.remote())
        except ray.exceptions.RayError as error:
            logger.warning("trials that hang are no longer noticed, because the inbox is gone: %s", error)
            self._next_look = float("inf")
            return {}
        self._watch.look(beat for beat in beats if beat.name in in_flight)
        self._watch.forget_all_but(in_flight)  # their processes wait for the next trial, or do it
        ended = {}
        for name, one in self._watch.hanging().items():
            self._watch.forget([name])
            if is_alive(one.beat.actor):
                ray.kill(one.beat.actor)
                ended[name] = str(one)
        return ended

    def close(self) -> None:
        ray.kill(self.inbox)
