"""Intervals and tests are those of independent sources, and hold what they claim at the specs' numbers of seeds."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.proportion import proportion_confint

from mnist_ray.report.analysis.significance import (
    FEWEST_SEEDS,
    mcnemar,
    of_proportions,
    paired_over_seeds,
    seeds_needed,
    t_interval,
    unpaired_over_seeds,
    wilson,
)


def test_wilson_matches_newcombes_example() -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: 81 of 263, method 3."""
    interval = wilson(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("right", "of"), [(0, 360), (355, 360), (9931, 10_000), (10_000, 10_000)])
def test_wilson_matches_statsmodels(right: int, of: int) -> None:
    interval = wilson(right, of)
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(right, of, method="wilson"), abs=1e-12)


@pytest.mark.parametrize("accuracy", [0.9, 0.98, 0.993])
def test_wilson_covers_the_truth(accuracy: float) -> None:
    random = np.random.default_rng(0)
    rights, times = np.unique(random.binomial(10_000, accuracy, size=4000), return_counts=True)
    covered = sum(int(many) for right, many in zip(rights, times, strict=True) if wilson(right, 10_000).holds(accuracy))
    assert covered / 4000 == pytest.approx(0.95, abs=0.015)


def test_paired_interval_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt 3, t(2) at 97.5 % 4.302653."""
    found = paired_over_seeds([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.value == pytest.approx(0.2)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert found.p_value == pytest.approx(0.0741799, abs=1e-6)  # 2 * (1 - T2(2 sqrt 3)), T2(t) = (1 + t/sqrt(2+t^2))/2
    assert not found.is_real


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_paired_interval_covers_the_truth(num_seeds: int) -> None:
    random = np.random.default_rng(num_seeds)
    first = random.normal(0.992, 0.0006, size=(2000, num_seeds))
    second = random.normal(0.9915, 0.0006, size=(2000, num_seeds))
    found = [paired_over_seeds(one, other) for one, other in zip(first.tolist(), second.tolist(), strict=True)]
    assert np.mean([each.interval.holds(0.0005) for each in found]) == pytest.approx(0.95, abs=0.015)
    same = random.normal(0.9915, 0.0006, size=(2000, num_seeds))
    found = [paired_over_seeds(one, other) for one, other in zip(same.tolist(), second.tolist(), strict=True)]
    assert np.mean([each.is_real for each in found]) == pytest.approx(0.05, abs=0.015)


def test_paired_test_without_spread() -> None:
    assert paired_over_seeds([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]).p_value == 1.0
    assert paired_over_seeds([0.5, 0.5, 0.5], [0.25, 0.25, 0.25]).is_real
    assert t_interval([0.5]).low == -math.inf


@pytest.mark.parametrize(("effect", "known"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_match_cohens_tables(effect: float, known: int) -> None:
    """One-sample t test, two-sided 5 %, power 80 %: 34, 15 and 10, as G*Power has them."""
    assert seeds_needed(effect, 1.0) == known


def test_seeds_needed_have_their_power() -> None:
    needed = seeds_needed(0.0008, 0.0007)
    assert needed is not None
    random = np.random.default_rng(1)
    seen = [stats.ttest_1samp(random.normal(0.0008, 0.0007, size=needed), 0.0).pvalue < 0.05 for _ in range(3000)]
    assert 0.77 < np.mean(seen) < 0.92


def test_seeds_needed_at_the_limits() -> None:
    assert seeds_needed(0.0, 0.001) is None
    assert seeds_needed(1e-6, 0.01) is None
    assert seeds_needed(0.01, 0.0) == FEWEST_SEEDS


def patterns(only_first: int, only_second: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [only_first, only_second, both, neither]
    return np.repeat([True, False, True, False], counts), np.repeat([False, True, True, False], counts)


@pytest.mark.parametrize("counts", [(31, 24, 9897, 48), (5, 0, 350, 5), (12, 40, 900, 48)])
def test_mcnemar_matches_statsmodels(counts: tuple[int, int, int, int]) -> None:
    found = mcnemar(*patterns(*counts))
    only_first, only_second, both, neither = counts
    known = mcnemar_of_statsmodels([[both, only_first], [only_second, neither]], exact=True)
    assert found.p_value == pytest.approx(known.pvalue)
    assert found.value == pytest.approx((only_first - only_second) / sum(counts))
    assert found.interval.holds(found.value)
    assert found.interval.holds(0.0) is not found.is_real


def test_networks_that_err_alike() -> None:
    found = mcnemar(*patterns(0, 0, 99, 1))
    assert (found.value, found.p_value, found.is_real) == (0.0, 1.0, False)


def test_mcnemars_interval_covers_the_truth() -> None:
    random = np.random.default_rng(2)
    truth = 0.002 - 0.004
    places = random.choice(4, p=[0.002, 0.004, 0.99, 0.004], size=(400, 10_000))
    covered = []
    for each in places:
        first, second = np.isin(each, [0, 2]), np.isin(each, [1, 2])
        found = mcnemar(first, second)
        discordant = int((first != second).sum())
        covered.append(found.interval.holds(truth / 0.006 * discordant / 10_000))  # given how many are discordant
    assert np.mean(covered) > 0.94


def test_welch_matches_scipy() -> None:
    found = unpaired_over_seeds([0.991, 0.992, 0.993], [0.990, 0.9915, 0.9905, 0.991])
    known = stats.ttest_ind([0.991, 0.992, 0.993], [0.990, 0.9915, 0.9905, 0.991], equal_var=False)
    assert found.p_value == pytest.approx(known.pvalue)


def test_proportions_match_newcombes_example() -> None:
    """Newcombe 1998, "Interval estimation for the difference between independent proportions", table II."""
    interval = of_proportions((56, 70), (48, 80)).interval
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.0524, 0.3339)
