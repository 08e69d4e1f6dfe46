"""The driver's part in a group whose size changes: from messages and heartbeats alone, without a cluster."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from mnist_ray.config import Retrain, TrainingConfig
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.pipeline.tasks import Execution, RetrainingEnd, TrainingTask
from mnist_ray.ray_backend import heartbeat
from mnist_ray.ray_backend.heartbeat import Heartbeat, Mailbox, packed
from mnist_ray.ray_backend.train import supervisor
from mnist_ray.ray_backend.train.messages import EpochDone, GroupEnded, GroupStarting
from mnist_ray.ray_backend.train.supervisor import Supervisor

LIMIT_S = 120.0


class Reports:
    """The pipeline's side, which keeps what is reported."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []
        self.ends: list[RetrainingEnd] = []
        self.num_polls = 0

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
        self.epochs.append((training_id, metrics.epoch))

    def on_end(self, end: RetrainingEnd) -> None:
        self.ends.append(end)

    def poll(self) -> None:
        self.num_polls += 1


def task(training_id: str) -> TrainingTask:
    config = TrainingConfig(learning_rate=0.001, dropout=0.25, batch_size=50, num_epochs=2, seed=0)
    return TrainingTask(training_id, config, "checkpoints", 1, "sentinel")


class Driver:
    """A supervisor with a mailbox, and the clock that both go by."""

    def __init__(self, workers: int | list[int], log: pytest.LogCaptureFixture) -> None:
        self.now_s = 1000.0
        self.killed: list[Any] = []
        self.reports = Reports()
        self._log = log
        self._mailbox = Mailbox()
        settings = Retrain.model_validate({"workers": workers})
        self.supervisor = Supervisor([task("one"), task("two")], settings, self.reports, LIMIT_S)

    @property
    def notes(self) -> list[str]:
        return self._log.messages

    def begin(self) -> None:
        self.supervisor.begin(self._mailbox)

    def starts(self, num_workers: int) -> None:
        self._mailbox.put_about_group(packed(GroupStarting(num_workers)))

    def ends(self, reason: str) -> None:
        self._mailbox.put_about_group(packed(GroupEnded(reason, is_preemption=False)))

    def epoch(self, training_id: str, epoch: int) -> None:
        metrics = EpochMetrics(epoch, 1.0, Score(0.5, 5, 10), None)
        self._mailbox.put(packed(EpochDone(training_id, metrics)))

    def end(self, training_id: str) -> None:
        end = RetrainingEnd(training_id, b"model", None, Execution(2, 1, "cpu", num_failures=0))
        self._mailbox.put(packed(end), ends=training_id)

    def beats(self, *names: str, pid: int, progress: int = 0) -> None:
        for name in names:
            beat = Heartbeat(name, "host", pid, f"{name} of {pid}", 0, progress, "somewhere", is_last=False)
            self._mailbox.heartbeat(name, packed(beat))

    def look(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            self.supervisor.look()


@pytest.fixture
def make_driver(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "mnist_ray")

    def make_driver(workers: int | list[int]) -> Driver:
        driver = Driver(workers, caplog)
        clock = SimpleNamespace(monotonic=lambda: driver.now_s)
        cluster = SimpleNamespace(kill=driver.killed.append, available_resources=lambda: {"CPU": 0.0})
        monkeypatch.setattr(heartbeat, "time", clock)
        monkeypatch.setattr(supervisor, "time", clock)
        monkeypatch.setattr(supervisor, "ray", cluster)
        monkeypatch.setattr(supervisor, "is_alive", lambda actor: True)
        monkeypatch.setattr(supervisor, "take_from", unpacked)
        driver.begin()
        return driver

    return make_driver


def unpacked(mailbox: Mailbox) -> tuple[list[Any], list[Heartbeat]]:
    messages, heartbeats = mailbox.take()
    return [cloudpickle.loads(each) for each in messages], [cloudpickle.loads(each) for each in heartbeats]


def runs_on(count: int) -> str:
    return f"the retraining runs on {count} of 1 to 2 workers"


def test_growth_is_no_failure_and_no_hang(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=1, progress=7)
    driver.look()
    assert driver.notes == [runs_on(1)]
    driver.starts(2)
    driver.look(50)
    driver.beats("rank 0", "rank 1", pid=2, progress=1)
    driver.look(int(LIMIT_S) - 2)
    assert driver.notes == [runs_on(1), runs_on(2)]
    assert (driver.killed, driver.supervisor.num_failures) == ([], 0)


def test_hang_in_a_smaller_group(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(2)
    driver.beats("rank 0", "rank 1", pid=1, progress=7)
    driver.look()
    driver.ends("rank 1: its process died")
    driver.look()
    driver.starts(1)
    driver.beats("rank 0", pid=2, progress=7)
    driver.look(int(LIMIT_S) + 1)
    assert driver.notes == ["the group of workers was ended: rank 1: its process died", runs_on(1)]
    assert driver.killed == ["rank 0 of 2"]
    driver.ends("rank 0: its process died")
    driver.look()
    assert driver.notes[-1].startswith(
        "the group of workers was ended: rank 0 (process 2 on host) has made no progress"
    )
    assert driver.supervisor.num_failures == 2


def test_hang_does_not_explain_a_later_group(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=1, progress=7)
    driver.look(int(LIMIT_S) + 1)
    assert driver.killed == ["rank 0 of 1"]
    driver.starts(2)  # before Ray Train had noticed the death
    driver.ends("rank 1: its process died")
    driver.look()
    assert driver.notes[-1] == "the group of workers was ended: rank 1: its process died"


def test_earlier_heartbeats_are_not_the_groups(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.beats("rank 0", pid=1)
    driver.starts(1)
    driver.look(59)
    assert driver.notes == []
    driver.look(2)
    assert driver.notes == [
        "waiting for 1 to 2 workers of 1 CPU each to start, for 60 s now; the cluster has 0 CPU free"
    ]


def test_resized_group_is_waited_for(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(2)
    driver.beats("rank 0", "rank 1", pid=1, progress=7)
    driver.look()
    driver.starts(1)
    driver.look(61)
    (note,) = driver.notes
    assert note.startswith("waiting for 1 to 2 workers")


def test_late_heartbeat_of_a_lost_rank(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=2, progress=7)
    driver.beats("rank 1", pid=1, progress=7)
    driver.look(int(LIMIT_S) + 1)
    assert driver.killed == ["rank 0 of 2"]


def test_late_look_keeps_the_groups_heartbeats(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=1)
    driver.look(70)
    assert driver.notes == [runs_on(1)]


def test_fixed_size_is_not_logged(make_driver: Any) -> None:
    driver = make_driver(2)
    driver.starts(2)
    driver.beats("rank 0", "rank 1", pid=1)
    driver.look(70)
    assert driver.notes == []


def test_failures_count_for_the_training_they_met(make_driver: Any) -> None:
    driver = make_driver(2)
    driver.epoch("one", 1)
    driver.ends("rank 1: its process died")
    driver.end("one")
    driver.epoch("two", 1)
    driver.end("two")
    driver.look()
    assert driver.reports.epochs == [("one", 1), ("two", 1)]
    ends = [(end.id, end.execution.num_failures, end.model) for end in driver.reports.ends]
    assert ends == [("one", 1, b"model"), ("two", 0, b"model")]
    assert driver.supervisor.open_tasks == []


def test_reports_are_polled_at_every_look(make_driver: Any) -> None:
    driver = make_driver(2)
    driver.look(3)
    assert driver.reports.num_polls == 3
