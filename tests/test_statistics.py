"""The interval of a difference is the one worked by hand, and holds the truth as often as it says."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.interval_coverage import CASES, Case, coverage, draw_normal, draw_right
from mnist_ray.statistics import (
    Difference,
    Interval,
    Spread,
    between_configurations,
    difference,
    expected_half_width,
    outcome,
    sign_flip_p_value,
)


def judged(low: float, high: float, p_value: float | None = None) -> Difference:
    return Difference("seeds and images", (3, 3), 100, (low + high) / 2, Interval(low, high), 0.1, p_value)


def test_interval_by_hand() -> None:
    """Seeds 1 and 3 on images of 0 and 2 more, without residuals, against seeds 1 and 1 on images of 0 and 0.

    Seeds: variance 2 of means 2 and 4, over 2 seeds 1. Images: differences 1 and 3, variance 2, over 2 images 1.
    """
    found = between_configurations(np.array([[1.0, 3.0], [3.0, 5.0]]), np.array([[1.0, 1.0], [1.0, 1.0]]))
    degrees = 1 / (1 / 2 / 1 + 1 / 2 / 1)
    half_width = stats.t.ppf(0.975, degrees) * math.sqrt(1 + 1)
    assert (found.value, found.interval.low) == pytest.approx((2.0, 2.0 - half_width))


def test_residuals_count_once() -> None:
    random = np.random.default_rng(0)
    seeds, images = 0.02 * random.standard_normal((4, 1)), random.standard_normal(500)
    first, second = (images + seeds + random.standard_normal((4, 500)) for _ in range(2))
    found = between_configurations(first, second)
    degrees_of_all = 6
    assert found.interval.high - found.value < 1.5 * stats.t.ppf(0.975, degrees_of_all) * math.sqrt(2 / (4 * 500))


def test_seeds_alone_give_welchs_interval() -> None:
    first, second = np.array([0.1, 0.5, 0.3, 0.9]), np.array([0.2, 0.25, 0.3])
    values, other_values = (np.repeat(side[:, None], 50, axis=1) for side in (first, second))
    found = between_configurations(values, other_values)
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_interval_covers_the_truth(case: Case, num_seeds: int) -> None:
    assert coverage(draw_normal(case, 100), num_seeds, 400) >= 0.92


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_interval_of_answers_covers_the_truth(num_seeds: int) -> None:
    assert coverage(draw_right((0.997, 0.994), 360, 0.0), num_seeds, 400, step=1.0) >= 0.92


def test_identical_answers_are_not_certain() -> None:
    same = np.ones((3, 360))
    found = difference(same, same, step=1.0)
    assert found.interval.high > 1 / 360
    assert outcome(found, 0.001, lower_is_better=False) == "undecided"


def test_smallest_difference_is_seen_as_often_as_said() -> None:
    random = np.random.default_rng(1)
    known = expected_half_width(Spread(1.0, 0.0), 5, 10_000)
    smallest = known * (1 + stats.t.ppf(0.8, 8) / stats.t.ppf(0.975, 8))
    is_seen = []
    for _ in range(400):
        first, second = (np.repeat(random.standard_normal((5, 1)), 3, axis=1) for _ in range(2))
        is_seen.append(not between_configurations(first + smallest, second).interval.holds(0.0))
    assert np.mean(is_seen) == pytest.approx(0.8, abs=0.08)


def test_smallest_difference_is_beyond_the_half_width() -> None:
    values = np.random.default_rng(2).standard_normal((2, 4, 50))
    found = difference(values[0], values[1])
    assert found.smallest_detectable > found.interval.high - found.value


@pytest.mark.parametrize(
    ("low", "high", "loss", "accuracy"),
    [
        (0.1, 2.0, "worse", "better"),
        (-2.0, -0.1, "better", "worse"),
        (-0.5, 0.5, "equivalent", "equivalent"),
        (-0.5, 1.5, "undecided", "undecided"),
        (0.1, 0.5, "worse", "better"),
    ],
)
def test_interval_decides(low: float, high: float, loss: str, accuracy: str) -> None:
    """By its place beside 0 and the bounds of ±1."""
    assert outcome(judged(low, high), 1.0, lower_is_better=True) == loss
    assert outcome(judged(low, high), 1.0, lower_is_better=False) == accuracy


def test_networks_are_decided_by_flips() -> None:
    assert outcome(judged(-0.5, 0.6, p_value=0.5), 1.0, lower_is_better=True) == "undecided"
    assert outcome(judged(0.1, 0.6, p_value=0.01), 1.0, lower_is_better=True) == "worse"


def test_two_seeds_are_networks() -> None:
    values = np.random.default_rng(3).standard_normal((3, 30))
    assert difference(values, values[:2]).method == "sign flips over images"
    assert difference(values, values).method == "seeds and images"


def test_few_flips_are_exact() -> None:
    """Of 6 images that differ alike, 2 of the 64 ways to sign them are as far from 0: McNemar's exact p."""
    values = np.array([0.0, 1, 1, 1, 1, 1, 1, 0])
    assert sign_flip_p_value(values) == pytest.approx(2 / 64) == stats.binomtest(6, 6).pvalue
    assert sign_flip_p_value(np.zeros(5)) == 1.0


@pytest.mark.parametrize(("only_first", "only_second"), [(31, 14), (20, 22)])
def test_many_flips_match_mcnemar(only_first: int, only_second: int) -> None:
    values = np.repeat([1.0, -1.0, 0.0], [only_first, only_second, 100])
    known = stats.binomtest(only_first, only_first + only_second).pvalue
    assert sign_flip_p_value(values) == pytest.approx(known, abs=0.02)


def test_flips_err_as_often_as_said() -> None:
    random = np.random.default_rng(4)
    p_values = [sign_flip_p_value(random.standard_t(2, size=12)) for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)
