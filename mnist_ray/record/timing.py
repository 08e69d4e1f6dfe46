"""Where the time of a run went, as its record tells."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mnist_ray.record.rundir import RunDir, Training


@dataclass(frozen=True)
class SearchTimes:
    """Seconds. A trial's start-up is from when it was asked for to its first training step."""

    first_start_up_s: float  # of the first trial of each process: imports, and Ray's own start of it
    start_up_s: float  # median of the trials after those
    worst_start_up_s: float  # of the trials after those
    training_s: float  # in all trials together, validation included
    busy: float  # share of the slots' time spent training, while two or more trials remained
    wall_s: float  # of that time


def search_times(trials: Sequence[Training], num_slots: int) -> SearchTimes:
    """trials: of one uninterrupted search, ended, more of them than `num_slots`, each with an epoch or more.

    An epoch is dated when the driver heard of it, so start-ups are measured too long rather than too short.
    """
    assert len(trials) > num_slots
    spans = [_training_spans(trial) for trial in trials]
    start_ups = [_start_up_s(trial) for trial in trials]
    began = min(_seconds(trial.asked["at"]) for trial in trials)
    ended = sorted(_seconds((trial.ended or {})["at"]) for trial in trials)[-2]  # then a single one remains
    busy_s = sum(max(min(end, ended) - start, 0.0) for trial_spans in spans for start, end in trial_spans)
    return SearchTimes(
        first_start_up_s=max(start_ups[:num_slots]),
        start_up_s=statistics.median(start_ups[num_slots:]),
        worst_start_up_s=max(start_ups[num_slots:]),
        training_s=sum(row["elapsed_s"] for trial in trials for row in trial.history),
        busy=busy_s / (num_slots * (ended - began)),
        wall_s=ended - began,
    )


@dataclass(frozen=True)
class TrialTime:
    """One training: from when it was asked for to its first epoch's beginning, in its epochs, and the rest."""

    training_id: str
    start_up_s: float
    computing_s: float  # validation included
    waiting_s: float  # for the driver, for its next turn, for a new start after a death


def training_times(trainings: Sequence[Training]) -> list[TrialTime]:
    """Of those that have ended with an epoch or more."""
    return [_time_of(training) for training in trainings if training.history and training.ended]


def _time_of(training: Training) -> TrialTime:
    start_up = max(0.0, _start_up_s(training))
    computing = sum(float(row["elapsed_s"]) for row in training.history)
    whole = _seconds((training.ended or {})["at"]) - _seconds(training.asked["at"])
    return TrialTime(training.id, start_up, computing, max(0.0, whole - start_up - computing))


def stage_times(run: RunDir) -> list[dict[str, Any]]:
    """One row a stage: its wall time (a search's over all sessions, others' in the one that ended them), and what its
    trainings computed.
    """
    rows = []
    for stage, name in (("searched", "search"), ("confirmed", "confirm"), ("retrained", "retrain"), ("tested", "test")):
        entries = [entry for entry in run.all_stages() if entry["stage"] == stage]
        if entries:
            computing = sum(row["elapsed_s"] for each in run.trainings(name) for row in each.history)
            wall = (
                entries[-1]["used_hours"] * 3600 if stage == "searched" else sum(each["elapsed_s"] for each in entries)
            )
            rows.append({"stage": name, "wall_s": wall, "computing_s": computing})
    data_s = [entry["data_s"] for entry in run.all_stages() if entry["stage"] == "started" and "data_s" in entry]
    return [{"stage": "data", "wall_s": sum(data_s), "computing_s": 0.0}, *rows] if data_s else rows


def _start_up_s(training: Training) -> float:
    """From when it was asked for to its first epoch's beginning."""
    return _span(training.history[0])[0] - _seconds(training.asked["at"])


def _training_spans(trial: Training) -> list[tuple[float, float]]:
    """From when to when each epoch lasted, in seconds since 1970."""
    return [_span(row) for row in trial.history]


def _span(row: dict[str, Any]) -> tuple[float, float]:
    end = _seconds(row["at"])
    return end - row["elapsed_s"], end


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
