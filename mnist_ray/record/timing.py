"""The times of a run: of its stages, its trainings and the slots of its search, from the record."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from mnist_ray.config import Stage
from mnist_ray.record.events import FinalEnded, RetrainingEnded, TestScored
from mnist_ray.record.state import RunState, Training


@dataclass(frozen=True)
class SearchTimes:
    """Seconds. A trial's start-up is from its creation to its first training step."""

    first_start_up_s: float  # of the first trial of each process: imports, and Ray's own start of it
    start_up_s: float  # median of the trials after those
    worst_start_up_s: float  # of the trials after those
    training_s: float  # in all trials together, validation included
    busy: float  # share of the slots' time spent training, while two or more trials remained
    wall_s: float  # of that time


def search_times(trials: Sequence[Training], num_slots: int) -> SearchTimes:
    """trials: of one uninterrupted search, ended, more of them than `num_slots`, each with an epoch or more.

    An epoch is dated when the driver received its report, so start-ups are measured too long rather than too short.
    """
    assert len(trials) > num_slots
    spans = [training_spans(trial) for trial in trials]
    start_ups = [_start_up_s(trial) for trial in trials]
    began = min(_seconds(trial.created_at) for trial in trials)
    ended = sorted(_seconds(trial.ended.at) for trial in trials if trial.ended)[-2]  # then a single one remains
    busy_s = sum(max(min(end, ended) - start, 0.0) for trial_spans in spans for start, end in trial_spans)
    return SearchTimes(
        first_start_up_s=max(start_ups[:num_slots]),
        start_up_s=statistics.median(start_ups[num_slots:]),
        worst_start_up_s=max(start_ups[num_slots:]),
        training_s=sum(trial.elapsed_s for trial in trials),
        busy=busy_s / (num_slots * (ended - began)),
        wall_s=ended - began,
    )


@dataclass(frozen=True)
class TrialTime:
    """Seconds of one training: from its creation to its first epoch's beginning, in its epochs, and the rest."""

    training_id: str
    start_up_s: float
    computing_s: float  # validation included
    waiting_s: float  # for the driver, for its next turn, for a new start after a death


def training_times(trainings: Sequence[Training]) -> list[TrialTime]:
    """Return the times of the trainings that have ended with an epoch or more."""
    times = []
    for training in trainings:
        if training.history and training.ended:
            start_up, computing = max(0.0, _start_up_s(training)), training.elapsed_s
            whole = _seconds(training.ended.at) - _seconds(training.created_at)
            times.append(TrialTime(training.id, start_up, computing, max(0.0, whole - start_up - computing)))
    return times


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage: on the clock (a search's over all sessions), and computed by its trainings."""

    stage: str
    wall_s: float
    computing_s: float


def stage_times(state: RunState) -> list[StageTime]:
    """Return one entry a stage that has ended, the loading of the data first."""
    times = []
    if data_s := [start.data_s for start in state.starts]:
        times.append(StageTime("data", sum(data_s), 0.0))
    if state.search_ended:
        times.append(StageTime("search", state.search_ended.used_s, _computing_s(state.trainings("search"))))
    for kind, stage in ((FinalEnded, "final"), (RetrainingEnded, "retrain"), (TestScored, "test")):
        ended = [event.elapsed_s for event in state.stage_events if isinstance(event, kind)]
        trainings = [] if stage == "test" else state.trainings(cast(Stage, stage))
        if ended:
            times.append(StageTime(stage, sum(ended), _computing_s(trainings)))
    return times


def _computing_s(trainings: Sequence[Training]) -> float:
    return sum(training.elapsed_s for training in trainings)


def _start_up_s(training: Training) -> float:
    """Return the seconds from the training's creation to its first epoch's beginning."""
    return training_spans(training)[0][0] - _seconds(training.created_at)


def training_spans(training: Training) -> list[tuple[float, float]]:
    """Return when each epoch began and ended, in seconds since 1970."""
    ends = [_seconds(at) for at in training.reported_at]
    return [(end - metrics.elapsed_s, end) for end, metrics in zip(ends, training.history, strict=True)]


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
