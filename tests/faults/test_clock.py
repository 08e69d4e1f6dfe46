"""A host whose clock is a day behind goes on with a run, repeats no stage and selects nothing anew."""

from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import pytest

from mnist_ray import LocalBackend, RunDir, run_job, search_job
from mnist_ray.record import events
from tests.small_job import small_spec, use_few_images


class YesterdaysClock(datetime):
    """A clock that is a day behind."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - timedelta(days=1)


def kinds(run: RunDir) -> list[str]:
    return [events.kind_of(type(event)) for event in RunDir(run.path).state.stage_events]


def test_a_clock_set_back_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first session selects, the second extends the search and selects again, the third only goes on."""
    use_few_images(monkeypatch)
    run = search_job(small_spec(tmp_path, search__num_trials=2), LocalBackend())
    search = ["session_started", "search_started", "search_ended"]
    searched = [*search, "final_started", "final_ended", "configuration_selected"]
    assert kinds(run) == searched
    monkeypatch.setattr(events, "datetime", YesterdaysClock)
    spec = small_spec(tmp_path, search__num_trials=3)
    search_job(spec, LocalBackend())
    assert kinds(run) == searched * 2
    num_events = RunDir(run.path).state.num_events
    search_job(spec, LocalBackend())
    assert RunDir(run.path).state.num_events == num_events
    run_job(spec, LocalBackend())
    assert kinds(run) == [*searched * 2, "session_started", "retraining_ended", "test_opened", "test_scored"]
    state = RunDir(run.path).state
    assert state.starts[0].at > state.starts[1].at
    assert state.selection_is_current and state.retraining_is_current
