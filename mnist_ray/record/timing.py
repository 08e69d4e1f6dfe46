"""Where the time of a search went, as its record tells."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mnist_ray.record.rundir import Training


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
    start_ups = [began[0][0] - _seconds(trial.asked["at"]) for trial, began in zip(trials, spans, strict=True)]
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


def _training_spans(trial: Training) -> list[tuple[float, float]]:
    """From when to when each epoch lasted, in seconds since 1970."""
    return [_span(row) for row in trial.history]


def _span(row: dict[str, Any]) -> tuple[float, float]:
    end = _seconds(row["at"])
    return end - row["elapsed_s"], end


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
