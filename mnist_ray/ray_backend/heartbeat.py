"""Heartbeats of the processes that train, and how the driver finds those that hang.

Each process sends heartbeats to a mailbox, an actor beside the driver. The driver empties the mailbox. A process that
is alive but makes no progress is named and killed; Ray then starts it again like any other that died. A process that
is stopped, or stuck in code that holds Python's lock, sends no heartbeats, which shows that it hangs. This module
needs no torch, so that the mailbox is there within a second.
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
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.training import progress_counter

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
LIMITS_TO_START = 3  # as many times the limit until the first progress: imports alone took 20 s on a crowded machine
LONGEST_STEP_S = 5.0  # of the monitor's clock
NUM_FRAMES = 6


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life of one training process."""

    name: str  # the id of the process's training, or its rank
    host: str
    pid: int
    actor: Any  # Ray's handle of the process
    number: int  # of this process's heartbeats for this training, counted from 0
    progress: int  # the process's progress counter (training/progress_counter.py)
    where: str  # the innermost Python frames of the thread that trains
    is_last: bool  # the training has left its function

    @property
    def process(self) -> tuple[str, int]:
        return self.host, self.pid


class Mailbox:
    """The messages and heartbeats of training processes, kept until the driver takes them.

    All of them are `packed`. Otherwise the mailbox's process would import for a second what the messages are made of.
    """

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._heartbeats: dict[str, bytes] = {}
        self._ended: set[str] = set()

    def put(self, message: bytes, ends: str | None = None) -> None:
        """Keep a message. ends: the training that the message ends."""
        self._messages.append(message)
        if ends is not None:
            self._ended.add(ends)

    def put_about_group(self, message: bytes) -> None:
        """Keep the message that a group ended or starts, and drop all earlier heartbeats: their processes are gone."""
        self._heartbeats = {}
        self.put(message)

    def ended(self) -> set[str]:
        """Return the trainings that ended, which a group that is started again passes over."""
        return self._ended

    def heartbeat(self, name: str, heartbeat: bytes) -> None:
        """Keep the latest heartbeat of each name."""
        self._heartbeats[name] = heartbeat

    def take(self) -> tuple[list[bytes], list[bytes]]:
        """Return all messages since the last call, and the latest heartbeat since then of each name.

        The heartbeats are later than all messages about the group.
        """
        taken = self._messages, list(self._heartbeats.values())
        self._messages, self._heartbeats = [], {}
        return taken


def packed(message: object) -> bytes:
    """Return a message or a heartbeat as a mailbox takes it."""
    content: bytes = cloudpickle.dumps(message)  # type: ignore[no-untyped-call]
    return content


def take_from(mailbox: Any) -> tuple[list[Any], list[Heartbeat]]:
    """Return what a mailbox has got since the last call: messages and heartbeats. Raises RayError."""
    messages, heartbeats = ray.get(mailbox.take.remote())
    return [cloudpickle.loads(message) for message in messages], [cloudpickle.loads(each) for each in heartbeats]


def start_mailbox(max_restarts: int = 0) -> Any:
    """Start a mailbox on this node.

    max_restarts: more than 0 only where the content may be lost; -1 for any number. Calls are not repeated by Ray,
    which would print a line about each that an orderly stop cuts off.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here, max_restarts=max_restarts).remote()


@contextlib.contextmanager
def heartbeats(mailbox: Any, name: str) -> Iterator[None]:
    """Send heartbeats for the calling thread, in an actor: at once, every HEARTBEAT_S, and when the block is left."""
    actor, thread_id = ray.get_runtime_context().current_actor, threading.get_ident()
    is_over = threading.Event()

    def send(number: int, is_last: bool) -> None:
        where, progress = innermost_frames(thread_id), progress_counter.value()
        heartbeat = Heartbeat(name, socket.gethostname(), os.getpid(), actor, number, progress, where, is_last)
        mailbox.heartbeat.remote(name, packed(heartbeat))

    def send_all() -> None:
        number = 0
        send(number, is_last=False)
        while not is_over.wait(HEARTBEAT_S):
            number += 1
            send(number, is_last=False)
        send(number + 1, is_last=True)

    threading.Thread(target=send_all, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def innermost_frames(thread_id: int) -> str:
    """Return where a thread of this process is: "take (training/loop.py:182), called by ...", innermost first.

    Private functions are left out: many of torch's and of Python's imports lie between there and the project's own.
    """
    frame = sys._current_frames().get(thread_id)
    frames: list[str] = []
    while frame is not None and len(frames) < NUM_FRAMES:
        name = frame.f_code.co_name
        if not frames or not name.startswith("_"):
            file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
            frames.append(f"{name} ({file}:{frame.f_lineno})")
        frame = frame.f_back
    return ", called by ".join(frames)


@dataclass(frozen=True)
class ProcessProgress:
    """A process's latest heartbeat with its age, in seconds of the monitor's clock."""

    heartbeat: Heartbeat
    silent_s: float  # since the heartbeat
    stalled_s: float  # since the process last made progress

    def __str__(self) -> str:
        who = f"{self.heartbeat.name} (process {self.heartbeat.pid} on {self.heartbeat.host})"
        return f"{who} has made no progress for {self.stalled_s:.0f} s, last seen in {self.heartbeat.where}"


class ProgressMonitor:
    """Follows the progress of processes by their heartbeats.

    The clock counts only time in which the driver itself looked, so a driver that was held up, or a machine that
    slept, takes no process for hanging when it wakes.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._clock_s = 0.0
        self._looked_at = time.monotonic()
        self._heartbeats: dict[str, Heartbeat] = {}
        self._heartbeat_at: dict[str, float] = {}
        self._progress_at: dict[str, float] = {}

    def look(self, heartbeats: Iterable[Heartbeat]) -> None:
        """Take in the heartbeats since the last look."""
        now = time.monotonic()
        self._clock_s += min(now - self._looked_at, LONGEST_STEP_S)
        self._looked_at = now
        for heartbeat in heartbeats:
            known = self._heartbeats.get(heartbeat.name)
            if known is None or known.process != heartbeat.process or known.progress != heartbeat.progress:
                self._progress_at[heartbeat.name] = self._clock_s
            self._heartbeat_at[heartbeat.name] = self._clock_s
            self._heartbeats[heartbeat.name] = heartbeat

    def forget(self, names: Collection[str]) -> None:
        for name in names:
            for known in (self._heartbeats, self._heartbeat_at, self._progress_at):
                known.pop(name, None)

    def forget_all_but(self, names: Collection[str]) -> None:
        self.forget([name for name in self._heartbeats if name not in names])

    def has_all(self, names: Collection[str]) -> bool:
        """Report whether every name has sent a heartbeat."""
        return all(name in self._heartbeats for name in names)

    def at_work(self) -> dict[str, ProcessProgress]:
        """Return the processes whose training has not ended, by name."""
        return {
            name: ProcessProgress(
                heartbeat, self._clock_s - self._heartbeat_at[name], self._clock_s - self._progress_at[name]
            )
            for name, heartbeat in self._heartbeats.items()
            if not heartbeat.is_last
        }

    def hanging(self) -> dict[str, ProcessProgress]:
        """Return the processes at work without progress for the limit, by name.

        A process without any progress yet has LIMITS_TO_START times the limit.
        """
        return {
            name: process
            for name, process in self.at_work().items()
            if process.stalled_s >= self._limit_s * (1 if process.heartbeat.progress else LIMITS_TO_START)
        }


def origin_of_hang(group: Iterable[ProcessProgress]) -> list[ProcessProgress]:
    """Return, of a group without progress, the processes that the others wait for.

    These are the ones that send no heartbeats, else the ones with the least progress.
    """
    group = list(group)
    silent = [process for process in group if process.silent_s > max(process.stalled_s / 2, 1.5 * HEARTBEAT_S)]
    least = min(process.heartbeat.progress for process in group)
    return silent or [process for process in group if process.heartbeat.progress == least]


def is_alive(actor: Any) -> bool:
    """Report whether an actor's process exists; one that does not answer within three seconds counts as alive."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=3.0)
    except ray.exceptions.GetTimeoutError:
        return True
    except ray.exceptions.RayError:
        return False
    return True


class TrialMonitor:
    """Kills the processes of trials that hang."""

    def __init__(self, limit_s: float) -> None:
        self._monitor = ProgressMonitor(limit_s)
        self._next_look = 0.0

    @cached_property
    def mailbox(self) -> Any:
        """Start the mailbox at the first use; a loss of its heartbeats does no harm, since more follow."""
        return start_mailbox(max_restarts=-1)

    def kill_hanging(self, in_flight: Collection[str]) -> dict[str, str]:
        """Look, at most once a second, and return why each trial whose process was killed had to be.

        in_flight: the trials that run; other processes wait for their next trial.
        """
        if time.monotonic() < self._next_look:
            return {}
        self._next_look = time.monotonic() + 1.0
        try:
            _, heartbeats = take_from(self.mailbox)
        except ray.exceptions.ActorUnavailableError:
            return {}  # its process died, and starts again
        except ray.exceptions.RayError as error:
            logger.warning(
                "trials that hang are no longer detected, because their heartbeats cannot be received: %s", error
            )
            self._next_look = float("inf")
            return {}
        self._monitor.look(heartbeat for heartbeat in heartbeats if heartbeat.name in in_flight)
        self._monitor.forget_all_but(in_flight)
        killed = {}
        for name, process in self._monitor.hanging().items():
            self._monitor.forget([name])
            if is_alive(process.heartbeat.actor):
                ray.kill(process.heartbeat.actor)
                killed[name] = str(process)
        return killed

    def close(self) -> None:
        ray.kill(self.mailbox)
