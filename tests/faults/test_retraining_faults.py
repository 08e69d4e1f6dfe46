"""A group of workers in which ranks hang, stop, die or cannot save, on a real Ray cluster."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from mnist_ray.config import Retrain, TrainingConfig
from mnist_ray.data import load_training, pixel_statistics
from mnist_ray.ray_backend.cluster import connected
from mnist_ray.ray_backend.heartbeat import start_inbox
from mnist_ray.ray_backend.shared_data import SharedData
from mnist_ray.ray_backend.train import supervisor
from mnist_ray.ray_backend.train import trainer as distributed
from mnist_ray.ray_backend.train.messages import EpochDone, Message, Retraining, RetrainingDone
from mnist_ray.ray_backend.train.trainer import GroupFailedError, retrain
from tests.faults.conftest import DiskThatTakesNothing
from tests.faults.sabotage import In, die, sabotaged, sleep, stop_itself
from tests.ray_head import Head, descendants

pytestmark = pytest.mark.slow

NUM_EPOCHS = 3
STEPS_PER_EPOCH = 4
HANG_LIMIT_S = 10.0


@pytest.fixture(scope="module")
def data(head: Any) -> Iterator[SharedData]:
    """200 digits on the head's cluster, which this process joins."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        examples = load_training("digits", Path()).take(np.arange(200))
        with connected(head.address, None, verbose=False):
            yield SharedData.put(examples, None, pixel_statistics(examples.images))


class Occupier:
    """An actor that only holds CPUs."""


class Heard:
    """What a retraining tells the driver."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []
        self.done: list[RetrainingDone] = []
        self.notes: list[str] = []

    def receive(self, message: Message) -> None:
        if isinstance(message, EpochDone):
            self.epochs.append((message.id, message.row["epoch"]))
        else:
            self.done.append(message)

    def epochs_of(self, training_id: str) -> list[int]:
        return [epoch for name, epoch in self.epochs if name == training_id]


def start(
    heard: Heard,
    data: SharedData,
    folder: Path,
    ids: list[str],
    workers: int | tuple[int, int] = 2,
    max_failures: int = 1,
    num_epochs: int = NUM_EPOCHS,
) -> Heard:
    config = TrainingConfig(learning_rate=0.001, dropout=0.25, batch_size=50, num_epochs=num_epochs, seed=0)
    retrain(
        [Retraining(name, config, folder / "checkpoints" / name, 0) for name in ids],
        data,
        Retrain(workers=workers),
        max_failures,
        folder / "ray",
        heard.receive,
        heard.notes.append,
        HANG_LIMIT_S,
    )
    return heard


def test_ranks_that_hang_are_named_and_started_again_until_failures_are_used_up(
    data: SharedData, tmp_path: Path
) -> None:
    faults = sabotaged(
        data,
        In(tmp_path / "slept", rank=1, step=STEPS_PER_EPOCH + 2, fault=sleep),
        In(tmp_path / "stopped", rank=0, step=STEPS_PER_EPOCH + 3, fault=stop_itself),
    )
    heard = Heard()
    with pytest.raises(GroupFailedError) as failed:
        start(heard, faults, tmp_path, ["one"], max_failures=1)
    last_line = str(failed.value).splitlines()[-1]
    assert last_line.startswith("rank 0 (process ")
    first, second = heard.notes
    assert first.startswith("the group of workers was ended: rank 1 (process ")
    assert "sleep (faults/sabotage.py:" in first
    assert second.endswith(last_line)


def test_a_rank_that_dies_costs_one_start_and_repeats_no_finished_training(data: SharedData, tmp_path: Path) -> None:
    first_of_second = NUM_EPOCHS * STEPS_PER_EPOCH + 2
    faults = sabotaged(data, In(tmp_path / "died", rank=1, step=first_of_second, fault=die))
    heard = start(Heard(), faults, tmp_path, ["one", "two"])
    assert [(done.id, done.num_failures, done.failure) for done in heard.done] == [("one", 0, None), ("two", 1, None)]
    assert heard.epochs_of("one") == [1, 2, 3]
    assert sorted(set(heard.epochs_of("two"))) == [1, 2, 3]
    (note,) = heard.notes
    assert "rank 1: its process died" in note


@pytest.mark.parametrize(("actor", "workers"), [("TrainController", 2), ("TrainController", (2, 2)), ("Inbox", 2)])
def test_an_actor_behind_the_group_that_dies_costs_one_start_too(
    data: SharedData, head: Head, tmp_path: Path, actor: str, workers: int | tuple[int, int]
) -> None:
    killed: list[int] = []

    class Killer(Heard):
        def receive(self, message: Message) -> None:
            super().receive(message)
            if self.epochs_of("two") and not killed:
                killed.extend(pid for pid, line in descendants(head.pid).items() if line.startswith(f"ray::{actor}"))
                os.kill(killed[0], signal.SIGKILL)

    num_epochs = 150  # a few seconds, so that it is still at it when it is killed
    heard = start(Killer(), data, tmp_path, ["one", "two"], workers, num_epochs=num_epochs)
    assert len(killed) == 1
    assert [(done.id, done.num_failures, done.failure) for done in heard.done] == [("one", 0, None), ("two", 1, None)]
    assert heard.epochs_of("one") == list(range(1, num_epochs + 1))
    assert sorted(set(heard.epochs_of("two"))) == list(range(1, num_epochs + 1))
    (note,) = heard.notes
    assert note.startswith("the group of workers was ended: Ray's own process of the group: its process died: ")


def test_deaths_of_actors_behind_the_group_are_bounded(
    data: SharedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "start_inbox", lambda: killed(start_inbox()))
    with pytest.raises(GroupFailedError, match="Ray's own process of the group"):
        start(Heard(), data, tmp_path, ["one"], max_failures=1)


def killed(actor: Any) -> Any:
    ray.kill(actor)
    return actor


def test_a_group_that_waits_for_workers_says_so(
    data: SharedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WAITING_NOTE_S", 2.0)
    occupier: Any = ray.remote(num_cpus=2)(Occupier).remote()
    ray.get(occupier.__ray_ready__.remote())
    freed = threading.Timer(7.0, lambda: ray.kill(occupier))
    freed.start()
    heard = start(Heard(), data, tmp_path, ["one"], workers=1)
    assert [done.failure for done in heard.done] == [None]
    first = r"waiting for 1 workers of 1 CPU each to start, for \d+ s now; the cluster has 0 CPU free"
    assert re.fullmatch(first, heard.notes[0])
    assert len(heard.notes) >= 2
    assert heard.notes[1].startswith("waiting for 1 workers of 1 CPU each to start, for 4 s now")


def test_a_disk_that_takes_nothing_ends_the_retraining_with_its_path_and_no_retries(
    data: SharedData, tmp_path: Path, bad_disk: DiskThatTakesNothing
) -> None:
    folder = bad_disk.path.parent
    with pytest.raises(OSError, match=bad_disk.message) as raised:
        start(Heard(), data, folder, ["one"], max_failures=0)
    assert raised.value.errno == bad_disk.errno
    assert str(raised.value.filename).startswith(str(bad_disk.path / "one"))
    bad_disk.mend()
    heard = start(Heard(), data, folder, ["one"], max_failures=0)
    assert [(done.failure, done.num_failures) for done in heard.done] == [(None, 0)]
