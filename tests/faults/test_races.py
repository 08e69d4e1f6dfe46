"""Fifty races of drivers for one run, paused and woken ones among them: each event has one owner, one finishes."""

import os
import random
import signal
import time
import traceback
from functools import partial
from pathlib import Path

import pytest

from mnist_ray import RunDir
from mnist_ray.errors import OwnedByAnotherError, TakenOverError
from mnist_ray.record import lease as ownership
from mnist_ray.record.events import Event, FinalStarted, RetrainingFailed, RunTaken
from mnist_ray.record.lease import owned
from tests.small_job import in_forks

NUM_RACES = 50
AT_ONCE = 5
NUM_STEPS = 12
LOST = 7


def drive(path: Path) -> int:
    """Own the run, go on with it, end it, as a driver does; return the exit code."""
    run = RunDir(path)
    try:
        with owned(run, lambda: None) as writer:
            while len(run.state.stage_events) < NUM_STEPS:
                time.sleep(0.01)
                for _ in range(2):  # in one file or in two
                    writer.record(FinalStarted(trainings=(str(os.getpid()),)))
                writer.flush()
            if run.state.retraining_failed is None:
                writer.publish(RetrainingFailed(error=str(os.getpid())))
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


def author_of(event: Event) -> str:
    """Return the id of the process that recorded an event."""
    match event:
        case RunTaken():
            return str(event.process.pid)
        case FinalStarted():
            return event.trainings[0]
        case RetrainingFailed():
            return event.error
    raise AssertionError(event)


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


def test_one_driver_at_a_time_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_S", 0.05), ("EXPIRE_S", 0.4), ("LOOK_S", 0.02)):
        monkeypatch.setattr(ownership, name, seconds)

    def races(share: int) -> None:
        chance = random.Random(share)
        for number in range(share, NUM_RACES, AT_ONCE):
            codes = race(tmp_path / str(number), chance)
            assert set(codes) <= {0, LOST}, codes
            assert 0 in codes

    # side by side, because a race mostly waits
    assert in_forks(*(partial(races, share) for share in range(AT_ONCE))) == [0] * AT_ONCE
    num_taken_over = 0
    for number in range(NUM_RACES):
        events = [numbered.event for numbered in RunDir(tmp_path / str(number)).log.read_new()]
        num_taken_over += sum(isinstance(event, RunTaken) for event in events) > 1
        owner = ""
        for event in events:
            owner = str(event.process.pid) if isinstance(event, RunTaken) else owner
            assert author_of(event) == owner, "an event of a process that was not the owner"
        assert sum(isinstance(event, RetrainingFailed) for event in events) == 1
    assert num_taken_over > 10, "the races are races"
