"""The state is what the events say, in their order; what is current is decided by numbers and never by times."""

from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest

from mnist_ray.config import parse_spec
from mnist_ray.errors import CorruptFileError
from mnist_ray.record import events
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import Event, SearchEnded, SearchStarted, UnknownEvent
from mnist_ray.record.state import RunState
from tests.record.examples import (
    SPEC,
    config,
    created,
    ended,
    one_training,
    reported,
    search_ended,
    selected,
    split_opened,
    started,
    taken,
    write,
)

ONE_TRIAL = parse_spec({"data": {"name": "digits"}, "search": {"num_trials": 1}})


def state_of(*written: Event) -> RunState:
    state = RunState()
    for number, event in enumerate(written, start=1):
        state.apply(Numbered(number, event))
    return state


# --- trainings


def test_trainings_read_back(tmp_path: Path) -> None:
    state = write(tmp_path, *one_training()).state
    training = state.training("trial-0000")
    assert training is not None
    assert (training.id, training.stage, training.config, training.number) == ("trial-0000", "search", config(), 0)
    assert [(each.epoch, each.objective("val_loss")) for each in training.history] == [
        (1, 0.30000000000000004),
        (2, 1e-300),
    ]
    assert (training.status, training.epochs_done) == ("pruned", 2)
    assert training.reason == "among the worst at epoch 2"
    assert training.elapsed_s == 0.5
    assert state.has_ended("trial-0000")


def test_new_trainings_are_open() -> None:
    state = state_of(created())
    training = state.training("trial-0000")
    assert training is not None
    assert (training.status, training.reason, training.epochs_done, training.history) == (None, None, 0, [])
    assert not state.has_ended("trial-0000") and state.num_ended("search") == 0
    assert state.training("trial-0001") is None and not state.has_ended("trial-0001")


def test_repeated_epochs_replace_later_ones() -> None:
    """A training that was started again goes on from a checkpoint before its last epoch."""
    state = state_of(created(), reported(epoch=1), reported(epoch=2), reported(epoch=3), reported(epoch=2, loss=0.7))
    training = state.training("trial-0000")
    assert training is not None
    assert [(each.epoch, each.train.loss) for each in training.history] == [(1, 0.1), (2, 0.7)]
    assert len(training.reported_at) == 2


def test_trainings_come_by_number() -> None:
    """As texts, trial-10000 comes before trial-9999."""
    names = [f"trial-{number:04d}" for number in (10_000, 9_999, 7)]
    state = state_of(*map(created, names), created("retrain-recipe-seed-0", "retrain"))
    assert [training.id for training in state.trainings("search")] == ["trial-0007", "trial-9999", "trial-10000"]
    assert [training.id for training in state.trainings("retrain")] == ["retrain-recipe-seed-0"]


def test_ends_are_counted_by_stage() -> None:
    state = state_of(created(), ended(), created("trial-0001"), created("final-trial-0000-seed-0", "final"))
    assert (state.num_ended("search"), state.num_ended("final")) == (1, 0)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "trial", "Trial-1", "trial-0001/../../x", "trial-1\0"])
def test_hostile_ids_are_refused(name: str) -> None:
    with pytest.raises(CorruptFileError, match="is not a valid name"):
        state_of(created(name))


@pytest.mark.parametrize("event", [reported(), ended()], ids=["epoch", "end"])
def test_unknown_trainings_are_refused(event: Event) -> None:
    with pytest.raises(CorruptFileError, match="'trial-0000', which was never created"):
        state_of(taken(), event)


# --- stages


def test_stages_keep_every_event(tmp_path: Path) -> None:
    written = [event for number in range(12) for event in (started(data_s=float(number)), SearchStarted())]
    state = write(tmp_path, *written, search_ended(num_trials=3)).state
    assert state.stage_events == [*written, state.search_ended]
    assert [start.data_s for start in state.starts] == list(map(float, range(12)))
    assert state.started is not None and state.started.data_s == 11.0
    assert state.search_ended is not None and state.search_ended.num_trials == 3
    assert state.final_ended is None
    assert state.latest_stage == "search ended"
    assert RunState().latest_stage == "begun"


def test_latest_events_have_their_numbers() -> None:
    state = state_of(taken(), SearchStarted(), search_ended(), SearchStarted(), search_ended(num_trials=2))
    latest = state.latest(SearchEnded)
    assert latest is not None
    assert (latest.number, latest.event.num_trials) == (5, 2)
    assert (state.number_of(SearchEnded), state.number_of(events.TestScored)) == (5, 0)
    assert state.num_events == 5


def test_stages_rest_on_the_latest() -> None:
    """A longer search makes everything after it old, until that is repeated."""
    facts: dict[str, Any] = {"trainings": (), "elapsed_s": 1.0}
    history: list[Event] = [taken(), search_ended()]
    assert not state_of(*history).selection_is_current
    history += [events.FinalEnded(rests_on=2, **facts), selected(rests_on=2)]
    history += [events.RetrainingEnded(rests_on=4, elapsed_s=1.0)]
    state = state_of(*history)
    assert state.final_is_current and state.selection_is_current and state.retraining_is_current
    history += [search_ended(num_trials=2)]
    state = state_of(*history)
    assert not state.final_is_current and not state.selection_is_current
    assert state.retraining_is_current, "until another configuration is selected"
    state = state_of(*history, events.FinalEnded(rests_on=6, **facts), selected(rests_on=6))
    assert state.final_is_current and state.selection_is_current and not state.retraining_is_current


def test_baselines_rest_on_no_search() -> None:
    state = state_of(taken(), selected(rests_on=0, training=None))
    assert state.selection_is_current
    assert not state_of(taken(), selected(rests_on=0, training=None), search_ended()).selection_is_current


@pytest.mark.parametrize(
    ("history", "is_open"),
    [
        ([], True),
        ([SearchStarted()], True),
        ([search_ended(num_trials=1)], False),
        ([search_ended(num_trials=1), SearchStarted()], False),
        ([search_ended(num_trials=1), split_opened()], False),
        ([split_opened()], False),
    ],
    ids=["new", "begun", "ended", "looked at", "tested", "baseline tested"],
)
def test_searches_close(history: list[Event], is_open: bool) -> None:
    assert state_of(*history).search_is_open(ONE_TRIAL) == is_open


def test_more_trials_reopen_a_search() -> None:
    two = ONE_TRIAL.model_copy(update={"search": ONE_TRIAL.search.model_copy(update={"num_trials": 2})})
    assert state_of(search_ended(num_trials=1)).search_is_open(two)
    assert not state_of(search_ended(num_trials=1), split_opened()).search_is_open(two)


def test_more_time_reopens_a_search() -> None:
    over = state_of(search_ended(num_trials=1, out_of_time=True, used_s=3600.0))
    for max_hours, is_open in ((1.0, False), (1.1, True), (None, True)):
        assert over.search_is_open(ONE_TRIAL.model_copy(update={"max_hours": max_hours})) == is_open


# --- owners


def test_sessions_follow_owners() -> None:
    state = state_of(taken(), SearchStarted(), taken(pid=7), started())
    assert [session.fencing_token for session in state.sessions] == [1, 3]
    assert state.fencing_token == 3
    assert state.session is not None and state.session.owner.process.pid == 7
    assert str(state.session.owner).startswith("process 7 on host here, the owner since 20")
    assert (RunState().fencing_token, RunState().session) == (0, None)


def test_search_time_adds_up() -> None:
    """Over sessions; a killed session counts up to its last event in the search."""

    def at(second: float, event: Event) -> Event:
        return replace(event, monotonic_s=second)

    killed = [at(1000, taken()), at(1010, SearchStarted()), at(1011, created()), at(1015, reported())]
    another_machine = [at(30, taken()), at(40, SearchStarted()), at(42, search_ended()), at(50, selected(8))]
    state = state_of(*killed, *another_machine)
    assert [session.searched_s for session in state.sessions] == [5.0, 2.0]
    assert state.searched_s == 7.0


def test_search_time_is_never_negative() -> None:
    """Whatever a stranger's record says, or an earlier release's does not say."""
    for began, last in ((100.0, 50.0), (None, 50.0), (100.0, None)):
        events = [replace(SearchStarted(), monotonic_s=began), replace(search_ended(), monotonic_s=last)]
        assert state_of(taken(), *events).searched_s == 0.0


# --- other releases


def test_unknown_kinds_are_collected() -> None:
    state = state_of(taken(), UnknownEvent(at="", kind="weather_observed"), *one_training())
    assert state.unknown_kinds == {"weather_observed"}
    assert state.num_events == 6
    assert len(state.trainings("search")) == 1
    assert state.stage_events == []


# --- clocks


class YesterdaysClock(datetime):
    """A clock that is a day behind."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - timedelta(days=1)


def test_a_clock_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second session, whose clock is a day behind, extends the search; then everything rests on its end."""
    write(tmp_path, started(SPEC), SearchStarted(), *one_training(), search_ended(), selected(rests_on=8))
    monkeypatch.setattr(events, "datetime", YesterdaysClock)
    state = write(tmp_path, started(SPEC), SearchStarted(), created("trial-0001"), ended("trial-0001")).state
    assert state.sessions[0].owner.at > state.sessions[1].owner.at, "the clock is behind"
    assert state.session == state.sessions[1]
    assert state.started is not None and state.started.at == state.starts[1].at
    number = state.num_events + 2
    state = write(tmp_path, search_ended(num_trials=2)).state
    assert state.search_ended is not None and state.search_ended.num_trials == 2
    assert state.number_of(SearchEnded) == number
    assert not state.selection_is_current
    again = selected(rests_on=number, training="trial-0001")
    state = write(tmp_path, again, events.RetrainingEnded(rests_on=number + 2, elapsed_s=1.0)).state
    assert state.selection_is_current and state.retraining_is_current
    assert state.selected is not None and state.selected.training == "trial-0001"
