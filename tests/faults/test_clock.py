"""A host whose clock is a day behind goes on with a run, repeats no stage and selects nothing anew."""

from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import pytest

from mnist_ray import LocalBackend, RunDir, run_job, search_job
from mnist_ray.callbacks import Callback, TrainingInfo, TrainingOutcome
from mnist_ray.errors import InterruptedRunError
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
    assert kinds(run) == [
        *searched * 2,
        "session_started",
        "retraining_started",
        "retraining_ended",
        "test_opened",
        "test_scored",
    ]
    state = RunDir(run.path).state
    assert state.starts[0].at > state.starts[1].at
    assert state.selection_is_current and state.retraining_is_current


class LeapingClock(datetime):
    """A clock that is set forward or back by a day each time it is read."""

    num_reads = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        cls.num_reads += 1
        return super().now(tz) + timedelta(days=(-1) ** cls.num_reads)


class StopAfter(Callback):
    """Ends the search, as Ctrl-C does, once a trial has ended."""

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        raise KeyboardInterrupt


def test_max_hours_ignores_a_leaping_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an interrupted search nor the one that goes on counts days that never passed."""
    use_few_images(monkeypatch)
    monkeypatch.setattr(events, "datetime", LeapingClock)
    spec = small_spec(tmp_path, max_hours=1)
    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        search_job(spec, LocalBackend(), callbacks=[StopAfter()])
    interrupted = RunDir(tmp_path / "small").state
    assert 0 < interrupted.searched_s < 60
    run = search_job(spec, LocalBackend())
    ended = RunDir(run.path).state.search_ended
    assert ended is not None
    assert interrupted.searched_s <= ended.used_s < 60
    assert not ended.out_of_time
