"""Every kind of event is read back as it was written, and what is none is refused."""

import json
import math
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from typing import Any

import pytest

from mnist_ray.record.events import EVENTS, Event, TrainingEnded, UnknownEvent, from_json, kind_of, now, to_json
from tests.record.examples import ended, every_kind, reported


def through_json(event: Event) -> Event:
    return from_json(json.loads(json.dumps(to_json(event))))


@pytest.mark.parametrize("event", every_kind(), ids=lambda event: kind_of(type(event)))
def test_every_kind_reads_back(event: Event) -> None:
    assert through_json(event) == event


def test_every_kind_has_an_example() -> None:
    assert {type(event) for event in every_kind()} == set(EVENTS)


def test_kinds_keep_their_names() -> None:
    """They are part of every record, so they must not follow a class that is renamed."""
    assert [kind_of(event) for event in EVENTS] == [
        *("run_taken", "session_started", "training_created", "epoch_reported", "training_ended"),
        *("search_started", "search_ended", "final_started", "final_ended", "configuration_selected"),
        *("retraining_started", "retraining_ended", "retraining_failed", "test_opened", "test_scored"),
    ]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_infinite_losses_are_refused(loss: float) -> None:
    """A training that comes to one ends before it reports the epoch (training/loop.py)."""
    with pytest.raises(ValueError, match=r"wrong metrics.train.loss: Input should be a finite number"):
        through_json(reported(loss=loss))


NO_TIMES = ["", "now", "2026-11-27T09:00:00", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"]


@pytest.mark.parametrize("at", NO_TIMES)
def test_times_have_a_zone_and_a_year(at: str) -> None:
    with pytest.raises(ValueError, match="wrong at"):
        through_json(reported(at=at))


def test_errors_hold_no_escape_sequences() -> None:
    again = through_json(ended(reason="a\x1b[2J\r\n\tb", trace="c\x07"))
    assert isinstance(again, TrainingEnded)
    assert (again.reason, again.trace) == ("a\ufffd[2J\r\n\tb", "c\ufffd")


def test_unknown_kinds_are_read_as_unknown() -> None:
    """Another release may have them."""
    content = {"kind": "weather_observed", "at": "2026-11-27T09:00:00.000+00:00", "text": "sunny"}
    assert from_json(content) == UnknownEvent(at="2026-11-27T09:00:00.000+00:00", kind="weather_observed")


@pytest.mark.parametrize("content", [None, 3, "epoch", [], {}, {"kind": 3}, {"kind": None, "at": "now"}])
def test_other_contents_are_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="is no event"):
        from_json(content)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"id": 3}, "id"),
        ({"metrics": None}, "metrics"),
        ({"metrics": {"epoch": "one"}}, r"metrics\.epoch"),
        ({"at": None}, "at"),
    ],
)
def test_wrong_fields_are_refused_by_name(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"the event epoch_reported has a wrong {key}"):
        from_json(to_json(reported()) | changes)


def test_missing_fields_are_refused() -> None:
    for event in every_kind():
        needed = {each.name for each in fields(event) if each.default is MISSING and each.default_factory is MISSING}
        for key in needed:
            content = {name: value for name, value in to_json(event).items() if name != key}
            with pytest.raises(ValueError, match=f"has a wrong {key}"):
                from_json(content)


def test_times_are_in_utc() -> None:
    at = datetime.fromisoformat(now())
    assert at.tzinfo == UTC
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
