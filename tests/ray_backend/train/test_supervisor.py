"""What the driver makes of groups whose size changes: from messages and beats alone, without a cluster."""

from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.config import Retrain
from mnist_ray.ray_backend import heartbeat
from mnist_ray.ray_backend.heartbeat import Beat, Inbox
from mnist_ray.ray_backend.train import supervisor
from mnist_ray.ray_backend.train.messages import GroupEnded, GroupStarting, packed
from mnist_ray.ray_backend.train.supervisor import Supervisor

LIMIT_S = 120.0


class Driver:
    """A supervisor with an inbox, and the clock that both go by."""

    def __init__(self, workers: int | list[int]) -> None:
        self.now_s = 1000.0
        self.killed: list[Any] = []
        self.notes: list[str] = []
        self._inbox = Inbox()
        self.supervisor = Supervisor(
            [], Retrain.model_validate({"workers": workers}), lambda message: None, self.notes.append, LIMIT_S
        )

    def begin(self) -> None:
        self.supervisor.begin(SimpleNamespace(take=SimpleNamespace(remote=self._inbox.take)))

    def starts(self, num_workers: int) -> None:
        self._inbox.put_about_group(packed(GroupStarting(num_workers)))

    def ends(self, reason: str) -> None:
        self._inbox.put_about_group(packed(GroupEnded(reason, is_preemption=False)))

    def beats(self, *names: str, pid: int, num_marks: int = 0) -> None:
        for name in names:
            self._inbox.beat(Beat(name, "host", pid, f"{name} of {pid}", 0, num_marks, "somewhere", is_last=False))

    def look(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            self.supervisor.look()


@pytest.fixture
def make_driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make_driver(workers: int | list[int]) -> Driver:
        driver = Driver(workers)
        clock = SimpleNamespace(monotonic=lambda: driver.now_s)
        cluster = SimpleNamespace(
            get=lambda answer: answer, kill=driver.killed.append, available_resources=lambda: {"CPU": 0.0}
        )
        monkeypatch.setattr(heartbeat, "time", clock)
        monkeypatch.setattr(supervisor, "time", clock)
        monkeypatch.setattr(supervisor, "ray", cluster)
        monkeypatch.setattr(supervisor, "is_alive", lambda actor: True)
        driver.begin()
        return driver

    return make_driver


def runs_on(count: int) -> str:
    return f"the retraining runs on {count} of 1 to 2 workers"


def test_a_group_that_grows_counts_no_failure_and_takes_no_one_for_hanging(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=1, num_marks=7)
    driver.look()
    assert driver.notes == [runs_on(1)]
    driver.starts(2)
    driver.look(50)
    driver.beats("rank 0", "rank 1", pid=2, num_marks=1)
    driver.look(int(LIMIT_S) - 2)
    assert driver.notes == [runs_on(1), runs_on(2)]
    assert (driver.killed, driver.supervisor.num_failures) == ([], 0)


def test_in_a_group_that_shrank_a_rank_that_hangs_is_noticed(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(2)
    driver.beats("rank 0", "rank 1", pid=1, num_marks=7)
    driver.look()
    driver.ends("rank 1: its process died")
    driver.look()
    driver.starts(1)
    driver.beats("rank 0", pid=2, num_marks=7)
    driver.look(int(LIMIT_S) + 1)
    assert driver.notes == ["the group of workers was ended: rank 1: its process died", runs_on(1)]
    assert driver.killed == ["rank 0 of 2"]
    driver.ends("rank 0: its process died")
    driver.look()
    assert driver.notes[-1].startswith("the group of workers was ended: rank 0 (process 2 on host) has not got on")
    assert driver.supervisor.num_failures == 2


def test_a_rank_that_hung_is_not_blamed_for_what_ends_a_later_group(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=1, num_marks=7)
    driver.look(int(LIMIT_S) + 1)
    assert driver.killed == ["rank 0 of 1"]
    driver.starts(2)  # before Ray Train had noticed the death
    driver.ends("rank 1: its process died")
    driver.look()
    assert driver.notes[-1] == "the group of workers was ended: rank 1: its process died"


def test_who_beat_before_the_group_started_is_not_of_the_group(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.beats("rank 0", pid=1)
    driver.starts(1)
    driver.look(59)
    assert driver.notes == []
    driver.look(2)
    assert driver.notes == [
        "waiting for 1 to 2 workers of 1 CPU each to start, for 60 s now; the cluster has 0 CPU free"
    ]


def test_a_group_that_waits_for_its_places_after_a_change_of_size_is_waited_for(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(2)
    driver.beats("rank 0", "rank 1", pid=1, num_marks=7)
    driver.look()
    driver.starts(1)
    driver.look(61)
    (note,) = driver.notes
    assert note.startswith("waiting for 1 to 2 workers")


def test_a_rank_of_the_group_before_that_is_heard_of_late_is_not_followed(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=2, num_marks=7)
    driver.beats("rank 1", pid=1, num_marks=7)
    driver.look(int(LIMIT_S) + 1)
    assert driver.killed == ["rank 0 of 2"]


def test_who_beats_after_the_group_started_is_of_the_group_though_the_driver_looks_late(make_driver: Any) -> None:
    driver = make_driver([1, 2])
    driver.starts(1)
    driver.beats("rank 0", pid=1)
    driver.look(70)
    assert driver.notes == [runs_on(1)]


def test_a_group_of_one_size_says_nothing_of_it(make_driver: Any) -> None:
    driver = make_driver(2)
    driver.starts(2)
    driver.beats("rank 0", "rank 1", pid=1)
    driver.look(70)
    assert driver.notes == []
