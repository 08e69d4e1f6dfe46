"""Fifty races of drivers for one run, paused and woken ones among them: each event has one owner, one finishes."""

import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

from mnist_ray import RunDir
from mnist_ray.errors import OwnedByAnotherError, TakenOverError
from mnist_ray.record import lease as ownership
from mnist_ray.record.lease import owned
from mnist_ray.storage.files import read_sealed_json

NUM_RACES = 50
NUM_STAGES = 12
LOST = 7


def drive(path: Path) -> int:
    """What a driver does: own the run, go on where it is, end it. Returns its exit code."""
    run = RunDir(path)
    try:
        with owned(run, lambda note: None, lambda: None):
            while len(run.all_stages()) < NUM_STAGES:
                time.sleep(0.01)
                run.record_stage("step", pid=os.getpid())
            if run.stage("finished") is None:
                run.record_stage("finished", pid=os.getpid())
    except (OwnedByAnotherError, TakenOverError):
        return LOST
    return 0


def start(path: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = drive(path)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def race(path: Path, chance: random.Random) -> list[int]:
    """Three drivers, started within a moment; one is paused for longer than its lease lasts, and woken."""
    drivers = []
    for _ in range(3):
        drivers.append(start(path))
        time.sleep(chance.uniform(0, 0.15))
    paused = chance.choice(drivers)
    os.kill(paused, signal.SIGSTOP)
    time.sleep(ownership.EXPIRE_S * 1.5)
    drivers.append(start(path))
    time.sleep(chance.uniform(0, 0.2))
    os.kill(paused, signal.SIGCONT)
    return [os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]) for driver in drivers]


def test_of_drivers_that_race_one_publishes_at_a_time_and_one_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("RENEW_S", 0.05), ("EXPIRE_S", 0.4), ("LOOK_S", 0.02)):
        monkeypatch.setattr(ownership, name, seconds)
    chance = random.Random(11)
    num_taken_over = 0
    for number in range(NUM_RACES):
        path = tmp_path / str(number)
        codes = race(path, chance)
        assert set(codes) <= {0, LOST}, codes
        assert 0 in codes
        events = [read_sealed_json(event) for event in sorted((path / "record").glob("*.json"))]
        owners = [event["pid"] for event in events if event["kind"] == "owner"]
        num_taken_over += len(owners) > 1
        owner = None
        for event in events:
            owner = event["pid"] if event["kind"] == "owner" else owner
            assert event["pid"] == owner, "an event of somebody who was not the owner"
        assert [event.get("stage") for event in events].count("finished") == 1
        assert RunDir(path).stage("finished") is not None
    assert num_taken_over > 10, "the races are races"
