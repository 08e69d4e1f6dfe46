"""The configuration whose fresh seeds score best is chosen, and the search's own score is left out of that."""

from typing import Any

import pytest

from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.record.rundir import Training
from mnist_ray.record.selection import choose, confirmations, seed_of_confirmation
from mnist_ray.record.study import seed_of_trial


def a_spec(**changes: Any) -> JobSpec:
    return parse_spec({"data": {"name": "digits"}, "search": {"num_epochs": 1, "early_stopping": None}} | changes)


def training(training_id: str, loss: float, status: Any = "complete", **asked: Any) -> Training:
    config = {"learning_rate": 0.001, "dropout": 0.25, "batch_size": 128, "num_epochs": 1, "seed": 7}
    history = [{"epoch": 1, "val_loss": loss, "val_accuracy": 1 - loss}]
    return Training(training_id, "search", config, asked, history, {"status": status, "reason": None})


TRIALS = [training(f"trial-000{number}", loss, number=number) for number, loss in enumerate([0.4, 0.1, 0.2, 0.3])]


def confirmed(scores: dict[int, list[float]]) -> list[Training]:
    return [
        training(f"confirm-trial-000{number}-seed-{seed}", loss, of=f"trial-000{number}")
        for number, losses in scores.items()
        for seed, loss in enumerate(losses)
    ]


def test_the_best_configurations_are_confirmed_each_on_the_same_seeds_which_no_trial_has() -> None:
    spec = a_spec(confirm={"top_k": 2, "seeds": 3})
    planned = confirmations(spec, TRIALS)
    assert [plan.trial.id for plan in planned] == ["trial-0001"] * 3 + ["trial-0002"] * 3
    seeds = [plan.config["seed"] for plan in planned]
    assert seeds[:3] == seeds[3:] and len(set(seeds)) == 3
    assert not set(seeds) & {seed_of_trial(spec.seed, number) for number in range(1000)}
    assert seed_of_confirmation(1, 0) != seed_of_confirmation(0, 0)


def test_none_is_planned_where_none_is_asked_for_and_no_more_than_there_are_trials() -> None:
    assert confirmations(a_spec(confirm=None), TRIALS) == []
    assert len(confirmations(a_spec(confirm={"top_k": 9, "seeds": 1}), TRIALS)) == 4
    assert confirmations(a_spec(), []) == []


def test_fresh_seeds_decide_whatever_the_search_said() -> None:
    choice = choose(a_spec(), TRIALS, confirmed({1: [0.5, 0.5], 2: [0.2, 0.4], 3: [0.1, 0.6]}))
    assert choice is not None
    assert (choice.training.id, choice.score) == ("trial-0002", 0.2)
    assert choice.confirmed_score == pytest.approx(0.3)


def test_the_larger_mean_is_better_where_accuracy_is_the_objective() -> None:
    spec = a_spec(search={"objective": "val_accuracy", "num_epochs": 1, "early_stopping": None})
    choice = choose(spec, TRIALS, confirmed({1: [0.5], 2: [0.2], 3: [0.3]}))
    assert choice is not None and choice.training.id == "trial-0002"


def test_a_configuration_that_failed_on_a_seed_is_passed_over() -> None:
    failed = training("confirm-trial-0002-seed-1", 0.0, status="failed", of="trial-0002")
    choice = choose(a_spec(), TRIALS, [*confirmed({1: [0.5, 0.5], 2: [0.1]}), failed])
    assert choice is not None and choice.training.id == "trial-0001"


def test_without_confirmations_or_where_all_failed_the_search_decides() -> None:
    for others in ([], [training("confirm-trial-0001-seed-0", 0.0, status="failed", of="trial-0001")]):
        choice = choose(a_spec(), TRIALS, others)
        assert choice is not None
        assert (choice.training.id, choice.confirmed_score) == ("trial-0001", None)
    assert choose(a_spec(), [], []) is None
