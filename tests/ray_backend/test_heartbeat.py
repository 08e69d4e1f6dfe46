"""Who is taken for hanging, from beats alone; no Ray cluster."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from mnist_ray.ray_backend import heartbeat
from mnist_ray.ray_backend.heartbeat import Beat, Inbox, Watch, culprits, innermost_frames

LIMIT_S = 60.0


class Clock:
    """The time that `Watch` reads, set by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


def beat(name: str, number: int, num_marks: int, pid: int = 1, is_last: bool = False) -> Beat:
    return Beat(name, "host", pid, None, number, num_marks, f"step (training.py:{num_marks})", is_last)


def follow(watch: Watch, clock: Clock, seconds: int, beats: Callable[[int], list[Beat]]) -> None:
    """Look once a second, at the beats of that second."""
    for second in range(seconds):
        clock.now_s += 1.0
        watch.look(beats(second))


def test_who_gets_on_does_not_hang(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 300, lambda second: [beat("rank 0", second, num_marks=1 + second // 50)])
    assert watch.hanging() == {}


def test_who_beats_but_stands_still_hangs_after_the_limit_and_not_before(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 60, lambda second: [beat("rank 0", second, num_marks=7)])
    assert watch.hanging() == {}
    follow(watch, clock, 1, lambda second: [beat("rank 0", 60, num_marks=7)])
    (hanging,) = watch.hanging().values()
    assert str(hanging) == "rank 0 (process 1 on host) has not got on for 60 s, last seen in step (training.py:7)"


def test_who_has_not_begun_gets_more_time(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 179, lambda second: [beat("rank 0", second, num_marks=0)])
    assert watch.hanging() == {}
    follow(watch, clock, 2, lambda second: [beat("rank 0", 179 + second, num_marks=0)])
    assert len(watch.hanging()) == 1


def test_who_falls_silent_hangs(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 100, lambda second: [beat("rank 0", second, num_marks=1 + second)] if second < 30 else [])
    (hanging,) = watch.hanging().values()
    assert hanging.silent_s == 70


def test_of_who_is_no_longer_followed_nothing_stays(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    for number in range(50):
        follow(watch, clock, 3, lambda second, name=f"trial-{number}": [beat(name, second, num_marks=7)])  # type: ignore[misc]
        watch.forget_all_but([f"trial-{number}"])
        assert list(watch.at_work()) == [f"trial-{number}"]
    assert watch.hanging() == {}


def test_who_has_left_does_not_hang(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 100, lambda second: [beat("rank 0", second, num_marks=7, is_last=True)] if second < 9 else [])
    assert watch.hanging() == {}


def test_a_new_process_of_the_same_name_begins_anew(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 59, lambda second: [beat("rank 0", second, num_marks=7, pid=1)])
    follow(watch, clock, 59, lambda second: [beat("rank 0", second, num_marks=7, pid=2)])
    assert watch.hanging() == {}


def test_time_in_which_the_driver_did_not_look_does_not_count(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 10, lambda second: [beat("rank 0", second, num_marks=7)])
    clock.now_s += 3600.0  # the machine slept
    follow(watch, clock, 1, lambda second: [beat("rank 0", 10, num_marks=7)])
    assert watch.hanging() == {}


def test_of_a_group_who_is_behind_is_named_and_not_who_waits(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    marks = {"rank 0": 9, "rank 1": 8, "rank 2": 9}
    follow(watch, clock, 100, lambda second: [beat(name, second, num_marks=count) for name, count in marks.items()])
    assert [one.beat.name for one in culprits(watch.hanging().values())] == ["rank 1"]


def test_of_a_group_who_is_silent_is_named_though_it_is_not_behind(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    alive = [beat("rank 0", 0, num_marks=8), beat("rank 2", 0, num_marks=9)]
    follow(watch, clock, 1, lambda second: [*alive, beat("rank 1", 0, num_marks=9)])
    follow(watch, clock, 100, lambda second: [replace(one, number=second + 1) for one in alive])
    assert [one.beat.name for one in culprits(watch.hanging().values())] == ["rank 1"]


def test_where_nobody_is_behind_all_are_named(clock: Clock) -> None:
    watch = Watch(LIMIT_S)
    follow(watch, clock, 100, lambda second: [beat("rank 0", second, num_marks=8), beat("rank 1", second, num_marks=8)])
    assert [one.beat.name for one in culprits(watch.hanging().values())] == ["rank 0", "rank 1"]


def test_the_inbox_hands_out_everything_once_and_the_latest_beat_of_each() -> None:
    inbox = Inbox()
    inbox.put({"text": "first"})
    inbox.put({"text": "second"}, ends="retrain-1")
    for number in range(3):
        inbox.beat(beat("rank 0", number, num_marks=number))
    messages, beats = inbox.take()
    assert [message["text"] for message in messages] == ["first", "second"]
    assert [one.number for one in beats] == [2]
    assert inbox.take() == ([], [])
    assert inbox.ended() == {"retrain-1"}


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


def test_where_a_thread_is_names_functions_files_and_lines_innermost_first() -> None:
    with thread_in(a_step_that_hangs) as thread_id:
        deadline = time.monotonic() + 10
        while "a_step_that_hangs" not in innermost_frames(thread_id) and time.monotonic() < deadline:
            time.sleep(0.01)
        where = innermost_frames(thread_id)
    assert "a_step_that_hangs (faults/test_heartbeat.py:" in where
    assert where.index("wait (") < where.index("a_step_that_hangs")
    assert innermost_frames(thread_id=0) == ""
