"""Which processes count as hanging, from heartbeats alone; no Ray cluster."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from mnist_ray.ray_backend import heartbeat
from mnist_ray.ray_backend.heartbeat import (
    Heartbeat,
    Mailbox,
    ProgressMonitor,
    innermost_frames,
    origin_of_hang,
    packed,
)

LIMIT_S = 60.0


class Clock:
    """The time that ProgressMonitor reads, set by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


def beat(name: str, number: int, progress: int, pid: int = 1, is_last: bool = False) -> Heartbeat:
    return Heartbeat(name, "host", pid, None, number, progress, f"step (training.py:{progress})", is_last)


def follow(monitor: ProgressMonitor, clock: Clock, seconds: int, beats: Callable[[int], list[Heartbeat]]) -> None:
    """Look once a second, at the heartbeats of that second."""
    for second in range(seconds):
        clock.now_s += 1.0
        monitor.look(beats(second))


def test_progress_is_no_hang(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 300, lambda second: [beat("rank 0", second, progress=1 + second // 50)])
    assert monitor.hanging() == {}


def test_hangs_from_the_limit_on(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 60, lambda second: [beat("rank 0", second, progress=7)])
    assert monitor.hanging() == {}
    follow(monitor, clock, 1, lambda second: [beat("rank 0", 60, progress=7)])
    (hanging,) = monitor.hanging().values()
    assert str(hanging) == "rank 0 (process 1 on host) has made no progress for 60 s, last seen in step (training.py:7)"


def test_start_gets_more_time(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 179, lambda second: [beat("rank 0", second, progress=0)])
    assert monitor.hanging() == {}
    follow(monitor, clock, 2, lambda second: [beat("rank 0", 179 + second, progress=0)])
    assert len(monitor.hanging()) == 1


def test_silence_is_a_hang(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 100, lambda second: [beat("rank 0", second, progress=1 + second)] if second < 30 else [])
    (hanging,) = monitor.hanging().values()
    assert hanging.silent_s == 70


def test_forgotten_processes_leave_nothing(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    for number in range(50):
        follow(monitor, clock, 3, lambda second, name=f"trial-{number}": [beat(name, second, progress=7)])  # type: ignore[misc]
        monitor.forget_all_but([f"trial-{number}"])
        assert list(monitor.at_work()) == [f"trial-{number}"]
    assert monitor.hanging() == {}


def test_ended_training_does_not_hang(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 100, lambda second: [beat("rank 0", second, progress=7, is_last=True)] if second < 9 else [])
    assert monitor.hanging() == {}


def test_new_process_starts_the_clock_again(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 59, lambda second: [beat("rank 0", second, progress=7, pid=1)])
    follow(monitor, clock, 59, lambda second: [beat("rank 0", second, progress=7, pid=2)])
    assert monitor.hanging() == {}


def test_time_without_looks_is_not_counted(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 10, lambda second: [beat("rank 0", second, progress=7)])
    clock.now_s += 3600.0  # the machine slept
    follow(monitor, clock, 1, lambda second: [beat("rank 0", 10, progress=7)])
    assert monitor.hanging() == {}


def test_least_progress_is_the_origin(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    marks = {"rank 0": 9, "rank 1": 8, "rank 2": 9}
    follow(monitor, clock, 100, lambda second: [beat(name, second, progress=count) for name, count in marks.items()])
    assert [one.heartbeat.name for one in origin_of_hang(monitor.hanging().values())] == ["rank 1"]


def test_silent_rank_is_the_origin(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    alive = [beat("rank 0", 0, progress=8), beat("rank 2", 0, progress=9)]
    follow(monitor, clock, 1, lambda second: [*alive, beat("rank 1", 0, progress=9)])
    follow(monitor, clock, 100, lambda second: [replace(one, number=second + 1) for one in alive])
    assert [one.heartbeat.name for one in origin_of_hang(monitor.hanging().values())] == ["rank 1"]


def test_equal_progress_names_all_ranks(clock: Clock) -> None:
    monitor = ProgressMonitor(LIMIT_S)
    follow(monitor, clock, 100, lambda second: [beat("rank 0", second, progress=8), beat("rank 1", second, progress=8)])
    assert [one.heartbeat.name for one in origin_of_hang(monitor.hanging().values())] == ["rank 0", "rank 1"]


def test_mailbox_gives_everything_once() -> None:
    mailbox = Mailbox()
    mailbox.put(b"first")
    mailbox.put(b"second", ends="retrain-1")
    for number in range(3):
        mailbox.heartbeat("rank 0", packed(beat("rank 0", number, progress=number)))
    messages, beats = mailbox.take()
    assert messages == [b"first", b"second"]
    assert beats == [packed(beat("rank 0", 2, progress=2))]
    assert mailbox.take() == ([], [])
    assert mailbox.ended() == {"retrain-1"}


@contextmanager
def thread_in(function: Callable[[threading.Event], None]) -> Iterator[int]:
    release = threading.Event()
    thread = threading.Thread(target=function, args=(release,))
    thread.start()
    assert thread.ident is not None
    try:
        yield thread.ident
    finally:
        release.set()
        thread.join()


def a_step_that_hangs(release: threading.Event) -> None:
    release.wait(30)


def test_frames_are_innermost_first() -> None:
    with thread_in(a_step_that_hangs) as thread_id:
        deadline = time.monotonic() + 10
        while "a_step_that_hangs" not in innermost_frames(thread_id) and time.monotonic() < deadline:
            time.sleep(0.01)
        where = innermost_frames(thread_id)
    assert "a_step_that_hangs (ray_backend/test_heartbeat.py:" in where
    assert where.index("wait (") < where.index("a_step_that_hangs")
    assert innermost_frames(thread_id=0) == ""
