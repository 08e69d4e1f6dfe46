"""A run has one owner; who is gone or silent is replaced; who was replaced publishes nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import CorruptFileError, OwnedByAnotherError, TakenOverError
from mnist_ray.record import lease as ownership
from mnist_ray.record.lease import EXPIRE_S, owned
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RECORD_FORMAT, RunDir
from mnist_ray.storage.files import read_sealed_json, write_sealed_json

CONFIG = {"learning_rate": 0.001, "dropout": 0.25, "batch_size": 128, "num_epochs": 3, "seed": 5}


def own(run: RunDir, notes: list[str] | None = None, lost: threading.Event | None = None) -> Any:
    return owned(run, (notes if notes is not None else []).append, (lost or threading.Event()).set)


# What another process does with a run: own it, say so, then add a stage for each line that it is told.
OTHER = """
import sys, threading
from pathlib import Path
from mnist_ray.record.lease import owned
from mnist_ray.record.rundir import RECORD_FORMAT, RunDir

run = RunDir(Path(sys.argv[1]))
try:
    with owned(run, lambda note: print("note", note, flush=True), lambda: print("lost", flush=True)):
        print("owner", flush=True)
        for line in sys.stdin:
            run.record_stage(line.strip())
            print("wrote", line.strip(), flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


class Other:
    """Another process that owns a run, or tries to."""

    def __init__(self, path: Path) -> None:
        command: list[str | Path] = [sys.executable, "-c", OTHER, path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def tell(self, stage: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{stage}\n")
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGKILL) -> None:
        with self.process:  # waits, and closes the pipes
            self.process.send_signal(number)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    process = Other(tmp_path)
    assert process.hear() == "owner"
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.process.send_signal(signal.SIGCONT)
    process.end()


def age(path: Path, seconds: float) -> None:
    """Let the last sign of life be that old."""
    then = time.time() - seconds
    for sign in [*(path / "leases").glob("*.json"), path / "record"]:
        os.utime(sign, (then, then))


def elsewhere(path: Path) -> None:
    """Let the last owner have run on another host: only its lease can tell whether it lives."""
    monkey = RunDir(path)
    monkey.take({"host": "elsewhere", "pid": 7, "pid_started": "1", "boot": "another", "processes": "pid:[1]"})
    write_sealed_json(monkey.lease(monkey.generation), {"at": 0, "num_events": monkey.num_events, "is_over": False})


def test_what_was_left_in_order_is_owned_again_at_once(tmp_path: Path) -> None:
    for session in (1, 2):
        run = RunDir(tmp_path)
        with own(run):
            run.record_stage("started", session=session)
    assert [entry["session"] for entry in RunDir(tmp_path).all_stages()] == [1, 2]


def test_a_second_owner_is_refused_and_the_first_is_named(tmp_path: Path, other: Other) -> None:
    began = time.monotonic()
    with (
        pytest.raises(OwnedByAnotherError, match=f"process {other.process.pid} on host .* since 20"),
        own(RunDir(tmp_path)),
    ):
        pass
    assert time.monotonic() - began < 10
    other.tell("searched")
    assert other.hear() == "wrote searched"


def test_a_dead_process_of_this_host_is_replaced_at_once(tmp_path: Path, other: Other) -> None:
    other.end()
    began = time.monotonic()
    with own(RunDir(tmp_path)):
        assert time.monotonic() - began < ownership.RENEW_S


def test_a_process_number_used_again_is_not_the_owner(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    facts = this_process() | {"pid_started": "1"}
    run.take({"host": "here", **facts})
    with own(RunDir(tmp_path)):
        pass


def test_an_owner_elsewhere_that_renews_is_alive(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    run = RunDir(tmp_path)
    body = {"at": 1, "num_events": 1, "is_over": False}
    threading.Timer(1.5, write_sealed_json, (run.lease(run.generation), body)).start()
    with pytest.raises(OwnedByAnotherError, match="process 7 on host elsewhere"), own(RunDir(tmp_path)):
        pass


def test_an_owner_elsewhere_that_is_silent_is_replaced_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path)
    age(tmp_path, EXPIRE_S - 3)
    monkeypatch.setattr(ownership, "SILENT_S", 1.0)
    notes: list[str] = []
    began = time.monotonic()
    with own(RunDir(tmp_path), notes):
        waited_s = time.monotonic() - began
    assert 2 < waited_s < 6
    assert len(notes) == 1
    assert "elsewhere" in notes[0]
    assert "silent for 5" in notes[0]


def test_a_paused_owner_that_wakes_up_publishes_nothing(tmp_path: Path, other: Other) -> None:
    other.tell("searched")
    assert other.hear() == "wrote searched"
    other.process.send_signal(signal.SIGSTOP)
    with pytest.raises(OwnedByAnotherError), own(RunDir(tmp_path)):
        pass
    age(tmp_path, EXPIRE_S + 1)
    run = RunDir(tmp_path)
    with own(run):
        other.tell("tested")
        other.process.send_signal(signal.SIGCONT)
        heard = [other.hear(), other.hear()]
        assert any(line.startswith("TakenOverError") and f"process {os.getpid()}" in line for line in heard)
        run.record_stage("chosen")
    assert [entry["stage"] for entry in RunDir(tmp_path).all_stages()] == ["searched", "chosen"]


def test_an_owner_that_was_replaced_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "RENEW_S", 0.2)
    run, lost = RunDir(tmp_path), threading.Event()
    with own(run, lost=lost):
        successor = RunDir(tmp_path)
        assert successor.num_events == 1
        successor.take({"host": "elsewhere", "pid": 7})
        assert lost.wait(5)
        with pytest.raises(TakenOverError):
            run.record_stage("tested")
    lease = read_sealed_json(run.lease(1))
    assert not lease["is_over"], "it must not end what is no longer its own"


def test_of_many_that_start_at_once_one_owns(tmp_path: Path) -> None:
    """A dead owner is there to be replaced, so that all of them find the run free."""
    first = Other(tmp_path)
    assert first.hear() == "owner"
    first.end()
    others = [Other(tmp_path) for _ in range(6)]
    heard = [each.hear().split()[0] for each in others]
    assert sorted(heard) == ["OwnedByAnotherError"] * 5 + ["owner"]
    for each in others:
        each.end()


def test_events_missing_at_the_end_are_noticed(tmp_path: Path) -> None:
    """The log alone cannot know them; the lease counts them."""
    run = RunDir(tmp_path)
    with own(run):
        run.record_stage("started")
        run.record_stage("tested")
    (tmp_path / "record" / "000003.json").unlink()
    with pytest.raises(CorruptFileError, match="events 3 to 3 are missing"):
        RunDir(tmp_path).all_stages()


def test_half_written_files_and_old_leases_go(tmp_path: Path) -> None:
    for _ in range(4):
        with own(RunDir(tmp_path)):
            pass
    leftover = tmp_path / "record" / ".000009.json.abc.json"
    leftover.write_bytes(b"half")
    with own(RunDir(tmp_path)):
        assert not leftover.exists()
        assert len(list((tmp_path / "leases").glob("*.json"))) == 2
    assert json.loads((tmp_path / "record" / "000001.json").read_text())["body"]["format"] == RECORD_FORMAT
