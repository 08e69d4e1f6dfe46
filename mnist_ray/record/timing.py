"""The times of a run: of its stages, its trainings and the slots of its search, from the record."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from mnist_ray.config import Stage
from mnist_ray.record.events import Event, FinalEnded, RetrainingEnded, RetrainingStarted, TestScored
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
    """Seconds of one training: until its slot was free, from there to its first epoch, in its epochs, and the rest."""

    training_id: str
    queued_s: float
    start_up_s: float
    computing_s: float  # validation included
    waiting_s: float  # for the driver, for its next turn, for a new start after a death


def training_times(
    trainings: Sequence[Training], num_retrained_at_once: int = 1, sessions: Sequence[str] = ()
) -> list[TrialTime]:
    """Return the times of the trainings that have ended with an epoch or more.

    Trials are created when they are handed out. Retrainings are all created at the beginning of their stage, so each
    that is not among the first `num_retrained_at_once` is queued until another one ends. Models that were taken over
    from another run are left out.
    sessions: when each began; what an earlier one left over is queued until the session that trains it.
    """
    trainings = [each for each in trainings if each.history and not (each.ended and each.ended.taken_from)]
    queued_s = _queued_s(trainings, num_retrained_at_once, [_seconds(at) for at in sessions])
    times = []
    for training in trainings:
        if training.ended:
            queued, computing = queued_s[training.id], training.elapsed_s
            start_up = max(0.0, _start_up_s(training) - queued)
            whole = _seconds(training.ended.at) - _seconds(training.created_at)
            waiting = max(0.0, whole - queued - start_up - computing)
            times.append(TrialTime(training.id, queued, start_up, computing, waiting))
    return times


def num_retrained_at_once(state: RunState) -> int:
    """Return how many retrainings the latest session ran side by side; 1 where the record does not say."""
    started = [event.concurrent for event in state.stage_events if isinstance(event, RetrainingStarted)]
    return started[-1] if started else 1


def _queued_s(trainings: Sequence[Training], num_slots: int, sessions: Sequence[float]) -> dict[str, float]:
    """Return by training how long it waited for its session and, if it is a retraining, for one of so many slots."""
    begun = {training.id: training_spans(training)[0][0] for training in trainings}
    retrained = sorted((each for each in trainings if each.stage == "retrain"), key=lambda each: begun[each.id])
    ends = sorted(_seconds(training.ended.at) for training in retrained if training.ended)
    slots = dict(zip((training.id for training in retrained[num_slots:]), ends, strict=False))
    queued = {}
    for training in trainings:
        created, began = _seconds(training.created_at), begun[training.id]
        session = max((at for at in sessions if at <= began), default=created)
        free_at = max(created, session, slots.get(training.id, created))
        queued[training.id] = min(free_at, max(began, created)) - created
    return queued


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


def start_up_s(state: RunState) -> float | None:
    """Return the seconds before the first step of each stage, in all; None unless one session on Ray did everything."""
    session, started = state.session, state.started
    if session is None or started is None or started.cluster.backend != "ray" or len(state.sessions) > 1:
        return None
    begins: dict[Stage, Event | None] = {
        "search": session.owner,
        "final": state.search_ended,
        "retrain": state.selected,
    }
    first_steps = {
        stage: min(training_spans(training)[0][0] for training in trained)
        for stage in begins
        if (trained := [training for training in state.trainings(stage) if training.history])
    }
    if "search" not in first_steps:
        return None
    return sum(
        max(0.0, first_step - _seconds(begin.at))
        for stage, first_step in first_steps.items()
        if (begin := begins[stage]) is not None
    )


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
