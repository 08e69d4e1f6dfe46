"""Where a search's time went, on records worked out by hand."""

from datetime import UTC, datetime

import pytest

from mnist_ray.record.rundir import Training
from mnist_ray.record.timing import TrialTime, search_times, training_times


def at(second: float) -> str:
    return datetime.fromtimestamp(1_000_000 + second, UTC).isoformat(timespec="milliseconds")


def trial(number: int, asked: float, epochs: list[tuple[float, float]], ended: float) -> Training:
    """epochs: when each began and ended."""
    history = [{"elapsed_s": end - start, "at": at(end)} for start, end in epochs]
    return Training(
        f"trial-{number:04d}", "search", {}, {"at": at(asked)}, history, {"status": "complete", "at": at(ended)}
    )


def test_time_in_which_two_slots_train_idle_and_wait() -> None:
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


def test_the_parts_of_a_trainings_time_add_up_to_the_whole() -> None:
    waited = trial(1, 0, [(5, 9)], 10)
    unfinished = trial(2, 0, [(1, 2)], 3)
    unfinished.ended = None
    assert training_times([waited, unfinished, trial(3, 0, [], 4)]) == [TrialTime("trial-0001", 5.0, 4.0, 1.0)]
