"""The last epoch of complete trials ranks them; fresh seeds decide, and the search's own score stays out of that."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config import JobSpec, Status, parse_spec
from mnist_ray.record.selection import (
    confirmations,
    confirmations_of,
    confirmed_score,
    ranked,
    seed_of_confirmation,
    select,
)
from mnist_ray.record.state import Training
from mnist_ray.record.study import seed_of_trial
from tests.record.examples import a_training


def a_spec(objective: str = "val_loss", **changes: Any) -> JobSpec:
    return parse_spec({"data": {"name": "digits"}, "search": {"objective": objective}} | changes)


BY_LOSS, BY_ACCURACY = a_spec(), a_spec("val_accuracy")


def trial(number: int, status: Status | None, *losses: float, num_correct: int = 90) -> Training:
    return a_training(f"trial-{number:04d}", status, *losses, num_correct=num_correct, number=number)


def selected_id(spec: JobSpec, *trials: Training) -> str | None:
    """Return the selected trial, by the search alone."""
    selection = select(spec, trials, [])
    return selection.training.id if selection else None


# --- the search's ranking


def test_the_last_epoch_decides() -> None:
    """Not the best one."""
    steady, lucky = trial(0, "complete", 0.9, 0.5, 0.4), trial(1, "complete", 0.9, 0.1, 0.5)
    selection = select(BY_LOSS, [steady, lucky], [])
    assert selection is not None
    assert (selection.training.id, selection.score, selection.is_complete) == ("trial-0000", 0.4, True)


def test_the_objective_decides() -> None:
    sure, right = trial(0, "complete", 0.1, num_correct=90), trial(1, "complete", 0.3, num_correct=95)
    assert selected_id(BY_LOSS, sure, right) == "trial-0000"
    selection = select(BY_ACCURACY, [sure, right], [])
    assert selection is not None
    assert (selection.training.id, selection.score) == ("trial-0001", 0.95)


@pytest.mark.parametrize("spec", [BY_LOSS, BY_ACCURACY], ids=["val_loss", "val_accuracy"])
def test_ties_go_to_the_earlier(spec: JobSpec) -> None:
    trials = [trial(number, "complete", 0.4) for number in range(3)]
    assert selected_id(spec, *trials) == "trial-0000"
    assert ranked(spec.search, trials) == trials


def test_complete_trials_come_first() -> None:
    others: list[Status | None] = ["pruned", "stopped", "failed", None]
    better = [trial(number, status, 0.01, 0.01) for number, status in enumerate(others)]
    assert selected_id(BY_LOSS, *better, trial(9, "complete", 0.9, 0.9, 0.9)) == "trial-0009"


def test_most_epochs_replace_complete_ones() -> None:
    trials = [
        trial(0, "pruned", 0.01),
        trial(1, "stopped", 0.5, 0.3),
        trial(2, "pruned", 0.5, 0.2),
        trial(3, "failed", 0.1, 0.1, 0.1),
        trial(4, None, 0.1, 0.1, 0.1),
    ]
    selection = select(BY_LOSS, trials, [])
    assert selection is not None
    assert (selection.training.id, selection.is_complete) == ("trial-0002", False)


@pytest.mark.parametrize("trials", [[], [trial(0, "failed", 0.1)], [trial(0, "stopped")], [trial(0, None, 0.1)]])
def test_nothing_may_be_selected(trials: list[Training]) -> None:
    assert select(BY_LOSS, trials, []) is None


@given(st.lists(st.tuples(st.sampled_from(["complete", "pruned", "failed"]), st.floats(0, 9)), max_size=8))
def test_no_complete_trial_is_better(ends: list[tuple[Status, float]]) -> None:
    trials = [trial(number, status, loss) for number, (status, loss) in enumerate(ends)]
    complete = [loss for status, loss in ends if status == "complete"]
    selection = select(BY_LOSS, trials, [])
    if complete:
        assert selection is not None
        assert selection.training.status == "complete"
        assert selection.score == min(complete)


# --- confirmations

TRIALS = [trial(number, "complete", loss) for number, loss in enumerate([0.4, 0.1, 0.2, 0.3])]


def confirmed(scores: dict[int, list[float]]) -> list[Training]:
    return [
        confirmation(number, seed, "complete", loss)
        for number, losses in scores.items()
        for seed, loss in enumerate(losses)
    ]


def confirmation(number: int, seed: int, status: Status, loss: float) -> Training:
    """Return a confirmation whose accuracy rises with its loss."""
    num_correct = round(100 * loss)
    training_id = f"confirm-trial-000{number}-seed-{seed}"
    return a_training(training_id, status, loss, num_correct=num_correct, of=f"trial-000{number}")


def test_the_best_are_confirmed() -> None:
    """Each on the same seeds, which no trial has."""
    spec = a_spec(confirm={"top_k": 2, "seeds": 3})
    planned = confirmations(spec, TRIALS)
    assert [plan.trial.id for plan in planned] == ["trial-0001"] * 3 + ["trial-0002"] * 3
    assert planned[4].id == "confirm-trial-0002-seed-1"
    seeds = [plan.config.seed for plan in planned]
    assert seeds[:3] == seeds[3:] and len(set(seeds)) == 3
    assert {plan.config.model_copy(update={"seed": 0}) for plan in planned} == {
        TRIALS[1].config.model_copy(update={"seed": 0})
    }
    assert not set(seeds) & {seed_of_trial(spec.seed, number) for number in range(1000)}
    assert seed_of_confirmation(1, 0) != seed_of_confirmation(0, 0)


def test_no_more_than_asked_for() -> None:
    assert confirmations(a_spec(confirm=None), TRIALS) == []
    assert len(confirmations(a_spec(confirm={"top_k": 9, "seeds": 1}), TRIALS)) == 4
    assert confirmations(a_spec(), []) == []


def test_fresh_seeds_decide() -> None:
    """Whatever the search said."""
    done = confirmed({1: [0.5, 0.5], 2: [0.2, 0.4], 3: [0.1, 0.6]})
    selection = select(BY_LOSS, TRIALS, done)
    assert selection is not None
    assert (selection.training.id, selection.score) == ("trial-0002", 0.2)
    assert selection.confirmed_score == pytest.approx(0.3)
    assert [training.id for training in confirmations_of("trial-0002", done)] == [
        *("confirm-trial-0002-seed-0", "confirm-trial-0002-seed-1")
    ]


def test_higher_accuracy_is_better() -> None:
    selection = select(BY_ACCURACY, TRIALS, confirmed({1: [0.5], 2: [0.2], 3: [0.3]}))
    assert selection is not None and selection.training.id == "trial-0001"


def test_failed_confirmations_are_passed_over() -> None:
    failed = confirmation(2, 1, "failed", 0.0)
    selection = select(BY_LOSS, TRIALS, [*confirmed({1: [0.5, 0.5], 2: [0.1]}), failed])
    assert selection is not None and selection.training.id == "trial-0001"
    assert confirmed_score(BY_LOSS, TRIALS[2], [failed]) is None


def test_the_search_decides_alone() -> None:
    """Without confirmations, and where all of them failed."""
    for others in ([], [confirmation(1, 0, "failed", 0.0)]):
        selection = select(BY_LOSS, TRIALS, others)
        assert selection is not None
        assert (selection.training.id, selection.confirmed_score) == ("trial-0001", None)
    assert select(BY_LOSS, [], []) is None
