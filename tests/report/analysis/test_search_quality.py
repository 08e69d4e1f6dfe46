"""A poor search is called one in words; a good one raises no warning."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mnist_ray.config import Choices, JobSpec, Range, parse_spec
from mnist_ray.record.rundir import RunDir
from mnist_ray.report.analysis.edges import edge, space_patch, widen
from mnist_ray.report.analysis.importance import importances
from mnist_ray.report.analysis.search_quality import (
    ALIKE,
    SIGNIFICANT,
    SearchReview,
    expected_best,
    noise_p_value,
    review_search,
)
from tests.report.made_up import Noise, made_up_spec, make_up, sensible_loss


def review(run: RunDir, spec: JobSpec) -> SearchReview:
    found = review_search(run, spec)
    assert found is not None
    return found


def warnings(run: RunDir, spec: JobSpec) -> str:
    return "\n".join(f"{warning.text}\n{warning.patch or ''}" for warning in review(run, spec).warnings)


@pytest.mark.parametrize("seed", range(5))
def test_a_good_search_raises_no_warning(tmp_path: Path, seed: int) -> None:
    spec = made_up_spec(tmp_path, seed=seed)
    assert warnings(make_up(spec), spec) == ""


def test_a_range_that_ends_too_early_is_noticed_and_the_patch_is_a_wider_space(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 1e-5, "high": 3e-4, "log": True}, "dropout": {"low": 0.0, "high": 0.6}}
    spec = made_up_spec(tmp_path, search={"space": space})
    (warning,) = [each for each in review(make_up(spec), spec).warnings if each.patch]
    assert "learning_rate" in warning.text and "high end" in warning.text
    assert warning.patch is not None
    patch = yaml.safe_load(warning.patch)
    wider = parse_spec({"data": {"name": "digits"}} | patch).search.space["learning_rate"]
    assert isinstance(wider, Range)
    assert wider.low == 1e-5 and wider.high > 1e-3  # which holds the bottom of the bowl


def test_a_search_in_noise_is_called_one(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path)
    run = make_up(spec, loss=lambda config: 0.05, noise=Noise(loss=0.004))
    assert "noise" in warnings(run, spec)


@pytest.mark.parametrize(("true_ratio", "at_least", "at_most"), [(0.0, 0.83, 0.9), (3.0, 0.06, 0.12), (5.0, 0.0, 0.01)])
def test_noise_is_mostly_noticed_and_a_search_that_finds_something_seldom_suspected(
    true_ratio: float, at_least: float, at_most: float
) -> None:
    """20 trials, a spread with three degrees of freedom; true_ratio: between trials to between seeds, deviations."""
    random = np.random.default_rng(0)
    suspected = 0
    for _ in range(3000):
        scores = random.normal(0, math.sqrt(true_ratio**2 + 1), 20)
        spread = math.sqrt(random.chisquare(3) / 3)
        is_alike = float(np.std(scores, ddof=1)) < ALIKE * spread
        suspected += is_alike and noise_p_value(scores.tolist(), spread, 3) >= SIGNIFICANT
    assert at_least <= suspected / 3000 <= at_most


def test_too_few_seeds_to_be_sure_is_a_sentence_and_no_warning(tmp_path: Path) -> None:
    """Trials differ by some three times as much as seeds, of which one configuration has two."""
    space = {"learning_rate": {"low": 0.001, "high": 0.004, "log": True}}
    spec = made_up_spec(tmp_path, search={"space": space, "num_trials": 8}, confirm={"top_k": 1, "seeds": 2})
    found = review(make_up(spec, noise=Noise(loss=0.0008)), spec)
    assert found.warnings == []
    assert any("too few seeds to be sure" in sentence for sentence in found.sentences)


def test_a_range_so_narrow_that_nothing_differs_is_called_one(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 0.00099, "high": 0.00101, "log": True}}
    spec = made_up_spec(tmp_path, search={"space": space})
    assert "too narrow" in warnings(make_up(spec, noise=Noise(loss=0.002)), spec)


def test_early_scores_that_say_nothing_of_final_ones_are_noticed(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, search={"num_trials": 20, "early_stopping": {"grace_epochs": 1}})
    run = RunDir(tmp_path / "early")
    run.take({"host": "here", "pid": 1, "version": "0"})
    _reversed_ranks(run)
    found = review(run, spec)
    assert any("Early scores do not rank" in warning.text for warning in found.warnings)


def _reversed_ranks(run: RunDir) -> None:
    """Trials whose first scores are in the opposite order of the last, and confirmations with hardly any spread."""
    config = {"learning_rate": 0.001, "dropout": 0.25, "batch_size": 128, "num_epochs": 6}
    for number in range(20):
        values = config | {"dropout": 0.02 * number, "seed": number}
        _recorded(run, f"trial-{number:04d}", "search", values, 0.3 + 0.01 * number, 0.3 - 0.01 * number, number=number)
    for seed in (0, 1):
        _recorded(
            run, f"confirm-trial-0019-seed-{seed}", "confirm", config | {"dropout": 0.38, "seed": seed}, 0.49,
            0.11 + 0.0001 * seed, of="trial-0019",
        )  # fmt: skip


def _recorded(run: RunDir, name: str, stage: str, config: dict[str, Any], first: float, last: float, **of: Any) -> None:
    run.record_asked(name, stage, config, **of)
    for epoch, loss in ((1, first), (6, last)):
        run.record_epoch(name, {"epoch": epoch, "elapsed_s": 0.1, "train_examples": 10, "val_loss": loss})
    run.record_ended(name, "complete", None)


def test_many_failures_are_noticed_and_counted(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path)
    run = make_up(spec, failures=(3, 7, 9, 11, 12, 20))
    found = review(run, spec)
    assert found.counts["failed"] == 6
    assert "6 of 30 trials failed" in warnings(run, spec)


def test_optimism_is_what_fresh_seeds_scored_worse_than_the_search(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, confirm={"top_k": 5, "seeds": 3})
    run = make_up(spec, loss=lambda config: 0.05, noise=Noise(loss=0.004))  # nothing but luck: the best is too good
    found = review(run, spec)
    assert len(found.optimism) == 5
    assert all(len(each.confirmed) == 3 for each in found.optimism)
    shifts = [each.shift for each in found.optimism if each.shift is not None]
    assert np.mean(shifts) > 0.002
    assert any("on fresh seeds" in sentence.lower() and "worse" in sentence for sentence in found.sentences)
    assert found.seed_spread == pytest.approx(0.004 * (1 + 1 / 6), rel=0.5)


def test_without_a_confirmation_it_says_that_scores_are_too_good(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, confirm=None)
    assert any("were not confirmed" in sentence for sentence in review(make_up(spec), spec).sentences)


def test_the_expected_best_is_what_simulation_says() -> None:
    costs = [0.3, 0.1, 0.7, 0.2, 0.5]
    found = expected_best(costs, 8)
    random = np.random.default_rng(0)
    for budget in (1, 2, 5, 8):
        lowest = random.choice(costs, size=(20_000, budget)).min(axis=1)
        assert found.mean[budget - 1] == pytest.approx(lowest.mean(), abs=0.006)
        assert found.low[budget - 1] == pytest.approx(np.quantile(lowest, 0.05, method="inverted_cdf"))
        assert found.high[budget - 1] == pytest.approx(np.quantile(lowest, 0.95, method="inverted_cdf"))


LEARNING_RATE, DROPOUT, SIZES = (
    Range(low=1e-4, high=1e-2, log=True),
    Range(low=0.1, high=0.5),
    Choices(choices=(32, 64, 128)),
)


@pytest.mark.parametrize(
    ("dimension", "best", "good", "at"),
    [
        (LEARNING_RATE, 0.0099, [0.0099, 0.008, 0.009], "high"),
        (LEARNING_RATE, 0.0099, [0.0099, 0.001, 0.0005], None),  # the others lie elsewhere: luck
        (LEARNING_RATE, 0.001, [0.001, 0.0099, 0.0098], None),
        (DROPOUT, 0.101, [0.101, 0.12, 0.3], "low"),
        (SIZES, 128, [128, 128, 64], "high"),
        (SIZES, 64, [64, 64, 64], None),
        (Choices(choices=(64,)), 64, [64], None),
    ],
)
def test_where_the_best_value_lies(dimension: Any, best: float, good: list[float], at: str | None) -> None:
    assert edge(dimension, best, good) == at


@pytest.mark.parametrize(
    ("key", "dimension", "end", "wider"),
    [
        ("learning_rate", LEARNING_RATE, "high", Range(low=1e-4, high=0.1, log=True)),
        ("dropout", DROPOUT, "high", Range(low=0.1, high=0.7)),
        ("dropout", DROPOUT, "low", Range(low=0.0, high=0.5)),
        ("dropout", Range(low=0.0, high=0.5), "low", None),  # nothing lies beyond
        ("dropout", Range(low=0.0, high=0.9), "high", None),  # half as wide again is no dropout, nor is an eighth
        ("batch_size", SIZES, "low", Choices(choices=(16, 32, 64, 128))),
        ("batch_size", Choices(choices=(1, 2)), "low", None),
    ],
)
def test_a_wider_space_holds_only_what_a_training_accepts(key: str, dimension: Any, end: str, wider: Any) -> None:
    found = widen(key, dimension, end)
    assert found == wider
    if found is not None:
        patch = space_patch({key: found})
        parse_spec({"data": {"name": "digits"}} | yaml.safe_load(patch))


def test_importances_find_what_matters_and_say_when_they_cannot(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, search={"num_trials": 150})
    run = make_up(spec, loss=lambda config: 0.05 + 0.02 * abs(math.log(config["learning_rate"] / 0.002)))
    found = importances(spec.search, run.trainings("search"))
    assert found.shares[0].name == "learning_rate"
    assert "learning_rate matters most" in found.sentence
    assert all(0 <= each.low <= each.high <= 1 for each in found.shares)
    few = importances(spec.search, run.trainings("search")[:20])
    assert few.shares == [] and "Too few trials" in few.sentence


def test_importances_in_noise_are_not_told_apart(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, search={"num_trials": 60})
    run = make_up(spec, loss=lambda config: 0.05, noise=Noise(loss=0.004))
    assert "cannot be told" in importances(spec.search, run.trainings("search")).sentence


def test_what_does_not_carry_over_is_said(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path)
    sentences = review(make_up(spec, loss=sensible_loss), spec).sentences
    assert any("need not be best" in sentence and "points from it" in sentence for sentence in sentences)
