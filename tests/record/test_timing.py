"""The times of a search, on records worked out by hand."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import Event, FinalEnded, RetrainingEnded, TrainingEnded
from mnist_ray.record.state import RunState, Training
from mnist_ray.record.timing import StageTime, TrialTime, search_times, stage_times, training_times
from tests.record.examples import config, created, reported, search_ended, started, taken


def at(second: float) -> str:
    return datetime.fromtimestamp(1_000_000 + second, UTC).isoformat(timespec="milliseconds")


def trial(number: int, created_at: float, epochs: list[tuple[float, float]], ended_at: float) -> Training:
    """Return a complete trial; epochs: when each began and ended."""
    training_id = f"trial-{number:04d}"
    return Training(
        training_id,
        "search",
        config(),
        at(created_at),
        history=[EpochMetrics(1, end - start, Score(0.1, 1, 2), None) for start, end in epochs],
        reported_at=[at(end) for _, end in epochs],
        ended=TrainingEnded(id=training_id, status="complete", at=at(ended_at)),
    )


def test_two_slots_train_idle_and_wait() -> None:
    trials = [
        trial(0, 0, [(4, 6), (6, 8)], 8),
        trial(1, 0, [(5, 9)], 10),
        trial(2, 8, [(8.5, 10.5)], 11),
        trial(3, 10, [(10.25, 20)], 20),  # alone from second 11 on
    ]
    times = search_times(trials, num_slots=2)
    assert times.first_start_up_s == pytest.approx(5)
    assert times.start_up_s == pytest.approx(0.375)
    assert times.worst_start_up_s == pytest.approx(0.5)
    assert times.training_s == pytest.approx(4 + 4 + 2 + 9.75)
    assert times.wall_s == pytest.approx(11)
    assert times.busy == pytest.approx((4 + 4 + 2 + 0.75) / 22)


def test_parts_add_up_to_the_whole() -> None:
    """Of a training's time; trainings without an epoch or an end have none."""
    waited = trial(1, 0, [(5, 9)], 10)
    unfinished = trial(2, 0, [(1, 2)], 3)
    unfinished.ended = None
    assert training_times([waited, unfinished, trial(3, 0, [], 4)]) == [TrialTime("trial-0001", 0.0, 5.0, 4.0, 1.0)]


def test_queue_is_no_start_up() -> None:
    """Three retrainings, created at once, in two slots and in one."""
    spans = [(2.0, 10.0), (3.0, 12.0), (10.5, 20.0)]
    trainings = [replace(trial(number, 0, [span], span[1]), stage="retrain") for number, span in enumerate(spans)]
    assert [(each.queued_s, each.start_up_s) for each in training_times(trainings, 2)] == [(0, 2), (0, 3), (10, 0.5)]
    in_turn = [(2.0, 9.0), (11.0, 20.0)]
    one_slot = [replace(trial(number, 0, [span], span[1]), stage="retrain") for number, span in enumerate(in_turn)]
    assert [(each.queued_s, each.start_up_s) for each in training_times(one_slot)] == [(0, 2), (9, 2)]
    for each, (_, end) in zip(training_times(trainings, 2), spans, strict=True):
        assert each.queued_s + each.start_up_s + each.computing_s + each.waiting_s == pytest.approx(end)


def test_time_between_sessions_is_no_start_up() -> None:
    """A retraining that an interrupted session left over, and a trial that the next session trained."""
    left_over = replace(trial(0, 0, [(103.0, 110.0)], 110), stage="retrain")
    times = training_times([left_over, trial(1, 2, [(104.0, 106.0)], 106)], sessions=[at(-5), at(100)])
    assert [(each.queued_s, each.start_up_s) for each in times] == [(100, 3), (98, 4)]


def test_models_of_another_run_take_no_time() -> None:
    taken_over = replace(trial(0, 0, [(1.0, 2.0)], 2), stage="retrain")
    assert taken_over.ended
    taken_over.ended = replace(taken_over.ended, taken_from="other/retrain-recipe-seed-0")
    assert training_times([taken_over]) == []


def test_stages_add_up_their_sessions() -> None:
    history: list[Event] = [taken(), started(data_s=0.5), created(), reported(epoch=1), reported(epoch=2)]
    history += [taken(), started(data_s=0.25), search_ended(used_s=9.0, elapsed_s=4.0)]
    history += [FinalEnded(trainings=(), rests_on=8, elapsed_s=2.0)]
    history += [RetrainingEnded(rests_on=8, elapsed_s=3.0), RetrainingEnded(rests_on=8, elapsed_s=1.0)]
    state = RunState()
    for number, event in enumerate(history, start=1):
        state.apply(Numbered(number, event))
    assert stage_times(state) == [
        StageTime("data", 0.75, 0.0),
        StageTime("search", 9.0, 0.5),
        StageTime("final", 2.0, 0.0),
        StageTime("retrain", 4.0, 0.0),
    ]
    assert stage_times(RunState()) == []
