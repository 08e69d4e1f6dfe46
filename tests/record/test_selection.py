"""The last epoch of complete trials ranks them; fresh seeds decide, and the search's own score stays out of that."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.final_round import planted_rounds, shipped_worse
from mnist_ray.config import JobSpec, Status, parse_spec
from mnist_ray.record.selection import RECIPE, final_trainings, ranked, seed_of_final, select
from mnist_ray.record.state import Training
from mnist_ray.record.study import seed_of_trial
from tests.record.examples import a_training, config


def a_spec(objective: str = "val_loss", **changes: Any) -> JobSpec:
    return parse_spec({"data": {"name": "digits"}, "search": {"objective": objective}} | changes)


BY_LOSS, BY_ACCURACY = a_spec(final=None), a_spec("val_accuracy", final=None)


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


# --- the final round

DROPOUTS = [0.25, 0.1, 0.2, 0.3, 0.1]  # the recipe's, and others; the last is the second one again


def searched(*losses: float) -> list[Training]:
    """Return one complete trial a loss, the recipe's first."""
    return [
        replace(trial(number, "complete", loss), config=config(dropout=dropout))
        for number, (loss, dropout) in enumerate(zip(losses, DROPOUTS, strict=False))
    ]


TRIALS = searched(0.05, 0.1, 0.3, 0.2, 0.15)


def final(of: str, *losses: float, status: Status = "complete") -> list[Training]:
    """Return one training a loss, the accuracy of which rises with the loss."""
    return [
        a_training(f"final-{of}-seed-{seed}", status, loss, num_correct=round(100 * loss), of=of)
        for seed, loss in enumerate(losses)
    ]


def winner_of(spec: JobSpec, *finals: list[Training]) -> str | None:
    selection = select(spec, TRIALS, [training for each in finals for training in each])
    assert selection is not None
    return selection.training.id


def test_finalists_are_the_best() -> None:
    """The recipe beside them whatever its score, and each configuration once; all on the same seeds."""
    spec = a_spec(final={"top_k": 2, "seeds": 3, "num_epochs": 7})
    planned = final_trainings(spec, TRIALS)
    assert [plan.of for plan in planned] == ["trial-0001"] * 3 + ["trial-0003"] * 3 + [RECIPE] * 3
    assert planned[4].id == "final-trial-0003-seed-1" and planned[-1].id == "final-recipe-seed-2"
    assert planned[-1].config.hyperparameters == spec.baseline
    assert {plan.config.num_epochs for plan in planned} == {7}
    seeds = [plan.config.seed for plan in planned]
    assert seeds[:3] == seeds[3:6] == seeds[6:] and len(set(seeds)) == 3


@given(st.integers(0, 2**31 - 1), st.integers(0, 9))
def test_final_seeds_are_fresh(seed: int, number: int) -> None:
    """Trials and retrainings have seeds below 2**31."""
    assert seed_of_final(seed, number) >= 2**31 > seed_of_trial(seed, number)
    assert seed_of_final(seed, number) != seed_of_final(seed, number + 1)


def test_budget_is_the_retrainings() -> None:
    assert {plan.config.num_epochs for plan in final_trainings(a_spec(retrain={"num_epochs": 30}), TRIALS)} == {30}


def test_no_more_than_there_are() -> None:
    assert final_trainings(a_spec(final=None), TRIALS) == []
    spec = a_spec(final={"top_k": 9, "seeds": 2})
    assert [plan.of for plan in final_trainings(spec, TRIALS)[::2]] == [
        *("trial-0001", "trial-0003", "trial-0002", RECIPE)
    ]


def test_furthest_trials_fill_up() -> None:
    """Where failures or max_hours left fewer complete trials than the final round takes."""
    others: list[Status] = ["pruned", "stopped", "failed"]
    short = [
        replace(trial(number, status, *[0.01] * number), config=config(dropout=number / 10))
        for number, status in enumerate(others, start=1)
    ]
    whole = replace(trial(4, "complete", 0.9, 0.9, 0.9), config=config(dropout=0.5))
    names = dict.fromkeys(plan.of for plan in final_trainings(a_spec(), [*short, whole]))
    assert list(names) == ["trial-0004", "trial-0002", "trial-0001", RECIPE]


def test_best_mean_beats_the_recipe() -> None:
    selection = select(a_spec(), TRIALS, [*final("trial-0003", 0.1, 0.12), *final("trial-0001", 0.2, 0.2), *RECIPES])
    assert selection is not None and selection.final is not None
    assert (selection.training.id, selection.score) == ("trial-0003", 0.2)
    assert selection.final.mean_of("trial-0003") == pytest.approx(0.11)
    assert selection.final.mean_of("trial-0002") is None, "it has not run"
    assert [each.of for each in selection.final.finalists] == ["trial-0001", "trial-0003", "trial-0002", RECIPE]
    # Squares of 0.01 from each mean, four in all, over three degrees of freedom.
    assert selection.final.deviation == pytest.approx(math.sqrt(4e-4 / 3))
    assert selection.final.margin == selection.final.deviation, "sqrt(2 / 2)"


RECIPES = final(RECIPE, 0.29, 0.31)


@pytest.mark.parametrize(("within", "expected"), [(0.0, "trial-0001"), (0.5, "trial-0001"), (3.0, "trial-0000")])
def test_recipe_stays_within_the_margin(within: float, expected: str) -> None:
    """It is ahead by 0.01; one standard error is 0.01 too."""
    spec = a_spec(final={"keep_recipe_within_se": within})
    assert winner_of(spec, final("trial-0001", 0.28, 0.30), RECIPES) == expected


def test_ties_go_to_the_recipe() -> None:
    spec = a_spec(final={"keep_recipe_within_se": 0})
    assert winner_of(spec, final("trial-0001", 0.29, 0.31), RECIPES) == "trial-0000"
    assert winner_of(spec, final("trial-0001", 0.29, 0.3099), RECIPES) == "trial-0001"


def test_only_the_best_is_compared() -> None:
    """The second would beat the recipe by the margin too, if the first did."""
    spec = a_spec(final={"keep_recipe_within_se": 2.0})
    noisy = final("trial-0001", 0.1, 0.3)
    assert winner_of(spec, noisy, final("trial-0003", 0.21, 0.21), RECIPES) == "trial-0000"


def test_higher_accuracy_is_better() -> None:
    spec = a_spec("val_accuracy", final={"keep_recipe_within_se": 0})
    assert winner_of(spec, final("trial-0001", 0.5, 0.5), final("trial-0003", 0.2, 0.2), RECIPES) == "trial-0001"
    assert winner_of(spec, final("trial-0001", 0.1, 0.1), RECIPES) == "trial-0000"


def test_failed_finalists_are_out() -> None:
    spec = a_spec(final={"keep_recipe_within_se": 0})
    half = [*final("trial-0001", 0.01), *final("trial-0001", 0.01, 0.01, status="failed")[1:]]
    assert winner_of(spec, half, final("trial-0003", 0.2, 0.2), RECIPES) == "trial-0003"
    assert winner_of(spec, half, RECIPES) == "trial-0000", "all others failed"


def test_nothing_is_selected_without_the_recipe() -> None:
    failed = final(RECIPE, 0.3, 0.3, status="failed")
    with pytest.raises(ValueError, match="recipe has no result"):
        select(a_spec(), TRIALS, [*final("trial-0001", 0.1, 0.1), *failed])


def test_earlier_finalists_do_not_count() -> None:
    """Of a final round before the search went on."""
    spec = a_spec(final={"top_k": 1, "keep_recipe_within_se": 0})
    assert winner_of(spec, final("trial-0001", 0.2, 0.2), final("trial-0003", 0.1, 0.1), RECIPES) == "trial-0001"


def test_the_search_decides_alone() -> None:
    selection = select(BY_LOSS, TRIALS, [])
    assert selection is not None
    assert (selection.training.id, selection.final) == ("trial-0000", None)
    assert select(BY_LOSS, [], []) is None


# --- planted searches


def test_recipe_and_margin_protect() -> None:
    """Something worse than the recipe is shipped in fewer runs (docs/decisions/0019-final-round.md)."""
    shares = shipped_worse(num_runs=4000, seeds=2)
    assert shares.without_recipe == pytest.approx(0.37, abs=0.03)
    assert shares.with_recipe == pytest.approx(0.13, abs=0.02)
    assert shares.known_margin == pytest.approx(0.05, abs=0.015)
    assert shares.estimated_margin == pytest.approx(0.07, abs=0.015)


def test_planted_finals_are_selected_alike() -> None:
    """`select` decides as the program does, on the same made-up finalists."""
    spec = a_spec()
    for final_round in planted_rounds(np.random.default_rng(0), num_runs=50, seeds=2):
        names = ["trial-0001", "trial-0003", "trial-0002"]
        finals = [final(name, *final_round.scores[at]) for at, name in enumerate(names)]
        expected = final_round.by_estimated_margin
        assert winner_of(spec, *finals, final(RECIPE, *final_round.scores[3])) == [*names, "trial-0000"][expected]
