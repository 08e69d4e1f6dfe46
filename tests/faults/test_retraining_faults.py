"""A group of workers in which ranks hang, stop, die or cannot save, on a real Ray cluster."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from mnist_ray.config import Retrain, TrainingConfig
from mnist_ray.data import load_training, pixel_statistics
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.backend import RetrainingFailedError
from mnist_ray.pipeline.tasks import RetrainingEnd, TrainingImages, TrainingTask
from mnist_ray.ray_backend.cluster import connected
from mnist_ray.ray_backend.heartbeat import TrialMonitor, is_alive, start_mailbox
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.ray_backend.train import supervisor
from mnist_ray.ray_backend.train import trainer as distributed
from mnist_ray.ray_backend.train.trainer import GroupSettings, retrain
from tests.faults.conftest import DiskThatTakesNothing, Notes
from tests.faults.sabotage import In, die, sabotaged, sleep, stop_itself
from tests.ray_head import Head, descendants

pytestmark = pytest.mark.slow

NUM_EPOCHS = 3
STEPS_PER_EPOCH = 4
HANG_LIMIT_S = 10.0


@pytest.fixture(scope="module")
def images(head: Any) -> Iterator[SharedImages]:
    """Share 200 digits on the head's cluster, which this process joins."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        examples = load_training("digits", Path()).take(np.arange(200))
        with connected(head.address, None, verbose=False):
            yield SharedImages.put(TrainingImages(examples, None, pixel_statistics(examples.images)))


class Occupier:
    """An actor that only holds CPUs."""


class Reports:
    """The pipeline's side of a retraining, which keeps what is reported."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []
        self.ends: list[RetrainingEnd] = []

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
        self.epochs.append((training_id, metrics.epoch))

    def on_end(self, end: RetrainingEnd) -> None:
        self.ends.append(end)

    def poll(self) -> None:
        pass

    def outcomes(self) -> list[tuple[str, int, bool]]:
        """Return the id of each training that ended, its number of failures, and whether it has a model."""
        return [(end.id, end.execution.num_failures, end.model is not None) for end in self.ends]

    def epochs_of(self, training_id: str) -> list[int]:
        return [epoch for name, epoch in self.epochs if name == training_id]


def start(
    reports: Reports,
    images: SharedImages,
    folder: Path,
    ids: list[str],
    workers: int | tuple[int, int] = 2,
    max_failures: int = 1,
    num_epochs: int = NUM_EPOCHS,
    num_groups: int = 1,
) -> Reports:
    config = TrainingConfig(learning_rate=0.001, dropout=0.25, batch_size=50, num_epochs=num_epochs, seed=0)
    (folder / "sentinel").touch()
    tasks = [
        TrainingTask(name, config, str(folder / "checkpoints" / name), 1, str(folder / "sentinel")) for name in ids
    ]
    settings = GroupSettings(images, Retrain(workers=workers), max_failures, folder / "ray", HANG_LIMIT_S)
    retrain(tasks, num_groups, settings, reports)
    return reports


def test_hanging_ranks_are_named_until_failures_are_used_up(images: SharedImages, tmp_path: Path, notes: Notes) -> None:
    faults = sabotaged(
        images,
        In(tmp_path / "slept", rank=1, step=STEPS_PER_EPOCH + 2, fault=sleep),
        In(tmp_path / "stopped", rank=0, step=STEPS_PER_EPOCH + 3, fault=stop_itself),
    )
    reports = Reports()
    with pytest.raises(RetrainingFailedError) as failed:
        start(reports, faults, tmp_path, ["one"], max_failures=1)
    last_line = str(failed.value).splitlines()[-1]
    assert last_line.startswith("rank 0 (process ")
    first, second = notes()
    assert first.startswith("the group of workers was ended: rank 1 (process ")
    assert "sleep (faults/sabotage.py:" in first
    assert second.endswith(last_line)


def test_lost_rank_costs_one_start(images: SharedImages, tmp_path: Path, notes: Notes) -> None:
    first_of_second = NUM_EPOCHS * STEPS_PER_EPOCH + 2
    faults = sabotaged(images, In(tmp_path / "died", rank=1, step=first_of_second, fault=die))
    reports = start(Reports(), faults, tmp_path, ["one", "two"])
    assert reports.outcomes() == [("one", 0, True), ("two", 1, True)]
    assert reports.epochs_of("one") == [1, 2, 3]
    assert sorted(set(reports.epochs_of("two"))) == [1, 2, 3]
    (note,) = notes()
    assert "rank 1: its process died" in note


@pytest.mark.parametrize(("actor", "workers"), [("TrainController", 2), ("TrainController", (2, 2)), ("Mailbox", 2)])
def test_lost_actor_costs_one_start(
    images: SharedImages, notes: Notes, head: Head, tmp_path: Path, actor: str, workers: int | tuple[int, int]
) -> None:
    killed: list[int] = []

    class Killer(Reports):
        def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
            super().on_epoch(training_id, metrics)
            if self.epochs_of("two") and not killed:
                killed.extend(pid for pid, line in descendants(head.pid).items() if line.startswith(f"ray::{actor}"))
                os.kill(killed[0], signal.SIGKILL)

    num_epochs = 150  # a few seconds, so that it is still at it when it is killed
    reports = start(Killer(), images, tmp_path, ["one", "two"], workers, num_epochs=num_epochs)
    assert len(killed) == 1
    assert reports.outcomes() == [("one", 0, True), ("two", 1, True)]
    assert reports.epochs_of("one") == list(range(1, num_epochs + 1))
    assert sorted(set(reports.epochs_of("two"))) == list(range(1, num_epochs + 1))
    (note,) = notes()
    assert note.startswith("the group of workers was ended: Ray's own process of the group: its process died: ")


def test_groups_train_what_one_group_trains(images: SharedImages, tmp_path: Path) -> None:
    """The weights are those of one group, which does the trainings one after another."""
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = start(Reports(), images, tmp_path / "two", ["a", "b", "c"], workers=1, num_groups=2)
    assert sorted(two.outcomes()) == [(name, 0, True) for name in ("a", "b", "c")]
    one = start(Reports(), images, tmp_path / "one", ["a", "b", "c"], workers=1)
    models = {end.id: end.model for end in one.ends}
    assert {end.id: end.model for end in two.ends} == models


def test_lost_controller_costs_its_own_group_alone(
    images: SharedImages, notes: Notes, head: Head, tmp_path: Path
) -> None:
    killed: list[int] = []

    class Killer(Reports):
        def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
            super().on_epoch(training_id, metrics)
            if self.epochs_of("a") and self.epochs_of("b") and not killed:
                lines = descendants(head.pid).items()
                killed.extend(pid for pid, line in lines if line.startswith("ray::TrainController"))
                os.kill(killed[0], signal.SIGKILL)

    reports = start(Killer(), images, tmp_path, ["a", "b"], workers=1, num_epochs=150, num_groups=2)
    assert len(killed) == 2
    assert sorted(num_failures for _, num_failures, _ in reports.outcomes()) == [0, 1]
    assert all(has_model for _, _, has_model in reports.outcomes())
    (note,) = notes()
    assert re.match(r"group [12] of 2 was ended: Ray's own process of the group: its process died: ", note)


def test_failed_group_lets_the_others_finish(images: SharedImages, tmp_path: Path, notes: Notes) -> None:
    faults = sabotaged(images, In(tmp_path / "died", rank=0, step=STEPS_PER_EPOCH + 2, fault=die))
    reports = Reports()
    with pytest.raises(RetrainingFailedError, match="rank 0: its process died"):
        start(reports, faults, tmp_path, ["a", "b", "c", "d"], workers=1, max_failures=0, num_groups=2)
    assert {name for name, _, has_model in reports.outcomes() if has_model} in ({"a", "c"}, {"b", "d"})
    (note,) = notes()
    assert note.startswith("group ")


def test_lost_actors_are_bounded(images: SharedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "start_mailbox", lambda: killed(start_mailbox()))
    with pytest.raises(RetrainingFailedError, match="Ray's own process of the group"):
        start(Reports(), images, tmp_path, ["one"], max_failures=1)


def test_mailbox_of_a_search_starts_again(images: SharedImages, head: Head, caplog: pytest.LogCaptureFixture) -> None:
    """Its process is killed while the search goes on."""
    monitor = TrialMonitor(60.0)
    assert monitor.kill_hanging([]) == {}
    (pid,) = [pid for pid, line in descendants(head.pid).items() if line.startswith("ray::Mailbox")]
    os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        time.sleep(1.1)
        assert monitor.kill_hanging([]) == {}
    assert is_alive(monitor.mailbox)
    monitor.close()
    assert "no longer detected" not in caplog.text


def killed(actor: Any) -> Any:
    ray.kill(actor)
    return actor


def test_waiting_for_workers_is_logged(
    images: SharedImages, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WAITING_NOTE_S", 2.0)
    occupier: Any = ray.remote(num_cpus=2)(Occupier).remote()
    ray.get(occupier.__ray_ready__.remote())
    freed = threading.Timer(7.0, lambda: ray.kill(occupier))
    freed.start()
    reports = start(Reports(), images, tmp_path, ["one"], workers=1)
    assert reports.outcomes() == [("one", 0, True)]
    first = r"waiting for 1 workers of 1 CPU each to start, for \d+ s now; the cluster has 0 CPU free"
    assert re.fullmatch(first, notes()[0])
    assert len(notes()) >= 2
    assert notes()[1].startswith("waiting for 1 workers of 1 CPU each to start, for 4 s now")


def test_bad_disk_ends_the_retraining(images: SharedImages, tmp_path: Path, bad_disk: DiskThatTakesNothing) -> None:
    folder = bad_disk.path.parent
    with pytest.raises(OSError, match=bad_disk.message) as raised:
        start(Reports(), images, folder, ["one"], max_failures=0)
    assert raised.value.errno == bad_disk.errno
    assert str(raised.value.filename).startswith(str(bad_disk.path / "one"))
    bad_disk.mend()
    reports = start(Reports(), images, folder, ["one"], max_failures=0)
    assert reports.outcomes() == [("one", 0, True)]
