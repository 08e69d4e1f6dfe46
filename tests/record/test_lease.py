"""A run has one owner; an owner that is gone or silent is replaced; an owner that was replaced publishes nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mnist_ray.errors import OwnedByAnotherError, TakenOverError
from mnist_ray.record import lease as ownership
from mnist_ray.record.events import RECORD_FORMAT, EpochReported, SearchStarted
from mnist_ray.record.lease import EXPIRE_S, PROBE, owned
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import UNFINISHED, read_sealed_json, write_sealed_json
from tests.record.examples import created, ended, read, reported, taken, taken_elsewhere, writing


def own(path: Path, lost: threading.Event | None = None) -> AbstractContextManager[RunWriter]:
    return owned(RunDir(path), (lost or threading.Event()).set)


# What another process does with a run: own it, print that, then publish a training for each line that it gets.
OTHER = """
import sys, threading
from pathlib import Path
from mnist_ray.record.lease import PROBE, owned
from mnist_ray.record.rundir import RunDir
from tests.record.examples import created

try:
    with owned(RunDir(Path(sys.argv[1])), lambda: print("lost", flush=True)) as writer:
        print("owner", flush=True)
        for line in sys.stdin:
            writer.publish(created(line.strip()))
            print("wrote", line.strip(), flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""
ROOT = Path(__file__).parents[2]


class Other:
    """Another process that owns a run, or tries to."""

    def __init__(self, path: Path) -> None:
        command: list[str | Path] = [sys.executable, "-c", OTHER, path]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def read_line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def create(self, training_id: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{training_id}\n")
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGKILL) -> None:
        with self.process:  # waits, and closes the pipes
            self.process.send_signal(number)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    process = Other(tmp_path)
    assert process.read_line() == "owner"
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.process.send_signal(signal.SIGCONT)
    process.end()


def age(path: Path, seconds: float) -> None:
    """Let the owner's last sign be that old."""
    then = time.time() - seconds
    for sign in [*(path / "leases").glob("*.json"), path / "record"]:
        os.utime(sign, (then, then))


def elsewhere(path: Path) -> None:
    """Let the last owner have run on another host: only its lease can show that it is at work."""
    with writing(path, taken_elsewhere()) as writer:
        lease = writer.run.paths.lease(writer.fencing_token)
        write_sealed_json(lease, {"at": 0, "num_events": writer.run.num_published, "is_over": False})


def names(path: Path) -> list[str]:
    return [training.id for training in read(path).state.trainings("search")]


def test_runs_left_in_order_are_free(tmp_path: Path) -> None:
    for _ in range(2):
        with own(tmp_path) as writer:
            writer.publish(SearchStarted())
    assert len(read(tmp_path).state.sessions) == len(read(tmp_path).state.stage_events) == 2


def test_owners_publish_the_rest(tmp_path: Path) -> None:
    with own(tmp_path) as writer:
        writer.record(created())
    assert names(tmp_path) == ["trial-0000"]
    assert read_sealed_json(writer.run.paths.lease(1)).items() >= {"num_events": 2, "is_over": True}.items()


def test_second_owners_are_refused(tmp_path: Path, other: Other) -> None:
    began = time.monotonic()
    with pytest.raises(OwnedByAnotherError, match=f"process {other.process.pid} on host .* since 20"), own(tmp_path):
        pass
    assert time.monotonic() - began < 10
    other.create("trial-0000")
    assert other.read_line() == "wrote trial-0000"


def test_dead_owners_are_replaced(tmp_path: Path, other: Other) -> None:
    other.end()
    began = time.monotonic()
    with own(tmp_path):
        assert time.monotonic() - began < ownership.RENEW_S


def test_reused_process_numbers_are_noticed(tmp_path: Path) -> None:
    with writing(tmp_path, taken(pid_started="1")):
        pass
    began = time.monotonic()
    with own(tmp_path):
        assert time.monotonic() - began < ownership.RENEW_S


def test_renewing_owners_are_at_work(tmp_path: Path) -> None:
    """Wherever they are."""
    elsewhere(tmp_path)
    body = {"at": 1, "num_events": 1, "is_over": False}
    threading.Timer(1.5, write_sealed_json, (read(tmp_path).paths.lease(1), body)).start()
    with pytest.raises(OwnedByAnotherError, match="process 7 on host elsewhere"), own(tmp_path):
        pass


def test_silent_owners_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a minute, which the user reads about."""
    elsewhere(tmp_path)
    age(tmp_path, EXPIRE_S - 3)
    monkeypatch.setattr(ownership, "SILENT_S", 1.0)
    caplog.set_level("INFO", "mnist_ray")
    began = time.monotonic()
    with own(tmp_path):
        waited_s = time.monotonic() - began
    assert 2 < waited_s < 6
    [message] = [record.getMessage() for record in caplog.records]
    assert "is in use by process 7 on host elsewhere" in message
    assert "no sign of life for 5" in message and "taken over after 60 s" in message


def test_woken_owners_publish_nothing(tmp_path: Path, other: Other) -> None:
    other.create("trial-0000")
    assert other.read_line() == "wrote trial-0000"
    other.process.send_signal(signal.SIGSTOP)
    with pytest.raises(OwnedByAnotherError), own(tmp_path):
        pass
    age(tmp_path, EXPIRE_S + 1)
    with own(tmp_path) as writer:
        other.create("trial-0001")
        other.process.send_signal(signal.SIGCONT)
        lines = [other.read_line(), other.read_line()]
        assert any(line.startswith("TakenOverError") and "was taken over" in line for line in lines)
        writer.publish(created("trial-0002"))
    assert names(tmp_path) == ["trial-0000", "trial-0002"]


def test_woken_owners_lose_their_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that were recorded before the pause and not yet published; the same training goes on elsewhere."""
    monkeypatch.setattr("mnist_ray.record.writer.GATHER_S", 1000.0)
    with own(tmp_path) as paused:
        paused.publish(created())
        for epoch in (1, 2):
            paused.record(reported(epoch=epoch, loss=0.5))
        paused.record(ended())
        with writing(tmp_path, taken_elsewhere()) as successor:
            successor.publish(reported(epoch=1, loss=0.25))
        with pytest.raises(TakenOverError):
            paused.flush()
    [training] = read(tmp_path).state.trainings("search")
    assert [each.train.loss for each in training.history] == [0.25]
    assert training.status is None
    assert paused.run.state.trainings("search") == [training], "the replaced owner shows what is published, too"


def test_replaced_owners_learn_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "RENEW_S", 0.2)
    lost = threading.Event()
    with own(tmp_path, lost) as writer:
        with writing(tmp_path, taken_elsewhere()):
            pass
        assert lost.wait(5)
        with pytest.raises(TakenOverError):
            writer.publish(SearchStarted())
    lease = read_sealed_json(writer.run.paths.lease(1))
    assert not lease["is_over"], "an owner must not end a run that another one has"


def test_one_of_many_owns(tmp_path: Path) -> None:
    """They start at once, and a dead owner is there to be replaced, so that all of them find the run free."""
    first = Other(tmp_path)
    assert first.read_line() == "owner"
    first.end()
    others = [Other(tmp_path) for _ in range(6)]
    lines = [each.read_line().split()[0] for each in others]
    assert sorted(lines) == ["OwnedByAnotherError"] * 5 + ["owner"]
    for each in others:
        each.end()


def test_leftovers_of_owners_go(tmp_path: Path) -> None:
    for _ in range(4):
        with own(tmp_path):
            pass
    leftovers = [tmp_path / "record" / f"{UNFINISHED}000009.json.abc.json", tmp_path / "leases" / f"{PROBE}here-7"]
    others = [tmp_path / "leases" / name for name in ("notes.txt", ".hidden")]
    for file in (*leftovers, *others):
        file.write_bytes(b"half")
    with own(tmp_path):
        assert [file.exists() for file in (*leftovers, *others)] == [False, False, True, True]
        assert len(list((tmp_path / "leases").glob("*.json"))) == 2
    assert [session.owner.format for session in read(tmp_path).state.sessions] == [RECORD_FORMAT] * 5


def test_leases_renew_while_events_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease counts only what is published, or a killed owner's run would seem to lack events."""
    monkeypatch.setattr(ownership, "RENEW_S", 0.05)
    monkeypatch.setattr("mnist_ray.record.writer.GATHER_S", 1000.0)
    with own(tmp_path) as writer:
        writer.publish(created())
        writer.record(reported())
        time.sleep(0.3)
        assert read_sealed_json(writer.run.paths.lease(1))["num_events"] == 2
        assert not any(isinstance(each.event, EpochReported) for each in RunDir(tmp_path).log.read_new())
