"""Events are published in batches: soon, at once where somebody waits, all or none, and by one owner."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import TakenOverError
from mnist_ray.record import event_log
from mnist_ray.record import writer as publishing
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import EpochReported, SearchStarted
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import create_atomic, read_sealed_json
from tests.record.examples import created, ended, log_files, one_training, read, reported, taken_elsewhere, writing

PATIENCE_S = 5.0


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    with writing(tmp_path / "run") as writer:
        yield writer


def sizes(run: RunDir) -> list[int]:
    """Return the number of events in each file of the log."""
    bodies = [read_sealed_json(path) for path in log_files(run)]
    return [len(body["events"]) for body in bodies]


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return holds()


def let_storage(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    """Call `before` before each file of the log is created."""

    def create_after(*arguments: Any) -> None:
        before()
        create_atomic(*arguments)

    monkeypatch.setattr(event_log, "create_atomic", create_after)


# --- batches


def test_numbers_are_those_of_the_log(writer: RunWriter) -> None:
    events = one_training()
    numbers = [writer.record(event) for event in events]
    writer.flush()
    assert numbers == [2, 3, 4, 5]
    on_record = event_log.EventLog(writer.run.paths.record).read_new()
    assert on_record[1:] == [Numbered(number, event) for number, event in zip(numbers, events, strict=True)]


def test_gathered_events_share_a_file(writer: RunWriter, unhurried: None) -> None:
    for event in one_training():
        writer.record(event)
    time.sleep(0.1)
    assert sizes(writer.run) == [1]
    writer.flush()
    assert sizes(writer.run) == [1, 4]


def test_events_are_published_soon(writer: RunWriter) -> None:
    """Without anybody who waits."""
    began = time.monotonic()
    writer.record(created())
    assert eventually(lambda: len(sizes(writer.run)) == 2)
    assert publishing.GATHER_S - 0.05 < time.monotonic() - began < publishing.GATHER_S + 1.0


def test_full_batches_do_not_wait(writer: RunWriter, unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MOST_GATHERED", 4)
    for event in one_training():
        writer.record(event)
    assert eventually(lambda: sizes(writer.run) == [1, 4])


def test_waiting_publishes_at_once(writer: RunWriter, unhurried: None) -> None:
    """With everything before and after the event that was waited for."""
    first, second, _ = writer.record(created()), writer.record(reported()), writer.record(ended())
    assert writer.wait(second)
    assert sizes(writer.run) == [1, 3]
    assert writer.wait(first)


def test_a_satisfied_wait_publishes_nothing(writer: RunWriter, unhurried: None) -> None:
    """The events that follow are still gathered."""
    number = writer.publish(created())
    assert writer.wait(number)
    writer.record(reported())
    time.sleep(0.1)
    assert sizes(writer.run) == [1, 1]


def test_waits_end_in_time(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    let_storage(monkeypatch, lambda: released.wait(PATIENCE_S))
    number = writer.record(created())
    assert not writer.wait(number, timeout_s=0.05)
    released.set()
    assert writer.wait(number, timeout_s=PATIENCE_S)


def test_recording_never_waits(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    let_storage(monkeypatch, lambda: released.wait(PATIENCE_S))
    writer.record(created())
    time.sleep(publishing.GATHER_S + 0.1)  # the store is at it
    began = time.monotonic()
    for epoch in range(1, 101):
        writer.record(reported(epoch=epoch))
    assert time.monotonic() - began < 1.0
    assert not released.is_set()
    released.set()
    writer.flush()
    assert sizes(writer.run) == [1, 1, 100], "one request for all that came meanwhile"


def test_closing_publishes_the_rest(tmp_path: Path, unhurried: None) -> None:
    with writing(tmp_path) as writer:
        writer.record(created())
    assert [training.id for training in read(tmp_path).state.trainings("search")] == ["trial-0000"]
    assert [training.id for training in writer.run.state.trainings("search")] == ["trial-0000"]


# --- subscribers


def test_subscribers_get_published_events(writer: RunWriter, unhurried: None) -> None:
    seen: list[tuple[Numbered, int]] = []
    writer.subscribe(lambda numbered: seen.append((numbered, threading.get_ident())))
    events = one_training()
    for event in events:
        writer.record(event)
    writer.poll()
    assert seen == [], "nothing is published yet"
    assert writer.run.state.trainings("search") == []
    writer.wait(3)
    assert seen == []
    writer.poll()
    here = threading.get_ident()
    assert seen == [(Numbered(number, event), here) for number, event in enumerate(events, start=2)]
    writer.poll()
    assert len(seen) == 4


def test_flushing_serves_subscribers(writer: RunWriter) -> None:
    seen: list[Numbered] = []
    writer.subscribe(seen.append)
    assert writer.publish(created()) == 2
    assert [numbered.number for numbered in seen] == [2]


def test_subscribers_find_the_state_current(writer: RunWriter) -> None:
    """While the writer's thread publishes more."""
    unknown = []

    def look(numbered: Numbered) -> None:
        event = numbered.event
        if isinstance(event, EpochReported) and writer.run.state.training(event.id) is None:
            unknown.append(numbered)

    writer.subscribe(look)
    for number in range(300):
        writer.record(created(f"trial-{number:04d}"))
        writer.wait(writer.record(reported(f"trial-{number:04d}")), timeout_s=0.0005)
        writer.poll()
    writer.flush()
    assert unknown == []
    assert len(writer.run.state.trainings("search")) == 300


# --- failures


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    let_storage(monkeypatch, fail)


@pytest.mark.parametrize("call", ["wait", "flush", "poll", "record", "publish"])
def test_failed_batches_end_the_writer(writer: RunWriter, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.publish(created())
    seen: list[Numbered] = []
    writer.subscribe(seen.append)
    fill_disk(monkeypatch)
    number = writer.record(reported())
    with pytest.raises(OSError, match="No space left"):
        writer.wait(number)
    calls: dict[str, Callable[[], object]] = {
        "wait": lambda: writer.wait(number),
        "flush": writer.flush,
        "poll": writer.poll,
        "record": lambda: writer.record(reported()),
        "publish": lambda: writer.publish(reported()),
    }
    monkeypatch.undo()  # the disk has room again, but what was lost stays lost
    with pytest.raises(OSError, match="No space left"):
        calls[call]()
    writer.close()
    assert seen == []
    for run in (writer.run, read(writer.run.path)):
        training = run.state.training("trial-0000")
        assert training is not None and training.epochs_done == 0
    assert sizes(writer.run) == [1, 1]


def test_failed_batches_are_lost_whole(writer: RunWriter, unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch)
    for event in one_training():
        writer.record(event)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    assert read(writer.run.path).state.trainings("search") == writer.run.state.trainings("search") == []


def test_replaced_owners_publish_nothing(writer: RunWriter, unhurried: None) -> None:
    """An owner that was paused wakes up with events to publish."""
    seen: list[Numbered] = []
    writer.subscribe(seen.append)
    for event in one_training():
        writer.record(event)
    with writing(writer.run.path, taken_elsewhere()) as successor:
        assert writer.was_taken_over()
        with pytest.raises(TakenOverError, match=f"{writer.run} was taken over by another process"):
            writer.flush()
        successor.publish(SearchStarted())
    assert seen == []
    run = read(writer.run.path)
    assert (run.state.trainings("search"), run.state.search_started is not None) == ([], True)
    assert sizes(run) == [1, 1, 1]


def test_one_of_two_becomes_the_owner(tmp_path: Path) -> None:
    """Both saw the run free."""
    with writing(tmp_path) as first:
        late = RunDir(tmp_path)
        late.catch_up()
        first.publish(created())
        with pytest.raises(TakenOverError):
            RunWriter(late, taken_elsewhere())
        assert not first.was_taken_over()


def test_later_owners_have_larger_tokens(tmp_path: Path) -> None:
    tokens = []
    for _ in range(3):
        with writing(tmp_path) as writer:
            writer.record(SearchStarted())
            tokens.append(writer.fencing_token)
    assert tokens == [1, 3, 5]
    assert read(tmp_path).state.fencing_token == 5
