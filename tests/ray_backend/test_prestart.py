"""Processes that are started ahead: what a stage waits for."""

import time
from collections.abc import Callable

import pytest

from mnist_ray.ray_backend import prestart
from mnist_ray.ray_backend.prestart import Prestart


@pytest.mark.parametrize(
    "start", [lambda ahead: ahead.trials(2), lambda ahead: ahead.groups(1, 2)], ids=["trials", "groups"]
)
def test_processes_that_could_not_be_started_are_not_awaited(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[Prestart], None]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(prestart, "num_started_workers", lambda: 1)
    monkeypatch.setattr(prestart, "prestart_workers", lambda *arguments, **options: 0)
    ahead = Prestart()
    start(ahead)
    ahead.wait()
    assert not slept


def test_processes_that_were_started_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = iter([1, 2, 3, 4])
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(prestart, "num_started_workers", lambda: next(joined))
    monkeypatch.setattr(prestart, "prestart_workers", lambda num_processes, *arguments, **options: num_processes)
    ahead = Prestart()
    ahead.trials(2)
    ahead.wait()
    assert len(slept) == 2
