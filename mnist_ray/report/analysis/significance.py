"""Intervals and tests of differences. Differences are of accuracies, from 0 to 1."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.power import TTestPower

CONFIDENCE = 0.95
SIGNIFICANT = 0.05  # a p-value below it
POWER = 0.8  # of an experiment with `seeds_needed` seeds
FEWEST_SEEDS = 3  # below it a spread over seeds is not known well enough to decide by
MOST_SEEDS = 1000  # a difference that needs more is of no use to anybody

Method = Literal["paired t over seeds", "Welch's t over seeds", "exact McNemar", "Newcombe"]


@dataclass(frozen=True)
class Interval:
    """An interval from `low` to `high`, with CONFIDENCE."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Difference:
    """A first accuracy less a second: its size, its interval, and the method of the judgement."""

    method: Method
    num_seeds: int
    value: float
    interval: Interval
    p_value: float
    seeds_needed: int | None  # to see the difference with POWER; None where it is 0 or MOST_SEEDS are not enough

    @property
    def is_real(self) -> bool:
        return self.p_value < SIGNIFICANT


def wilson(num_correct: int, num_examples: int) -> Interval:
    """Return the score interval of a proportion (Wilson 1927, "Probable Inference", equation 8), by scipy."""
    found = stats.binomtest(num_correct, num_examples).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def t_interval(values: Sequence[float]) -> Interval:
    """Return Student's interval of a mean (Student 1908); infinite for a single value."""
    if len(values) < 2:
        return Interval(-math.inf, math.inf)
    if np.ptp(values) == 0:
        return Interval(values[0], values[0])
    found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return Interval(float(found.low), float(found.high))


def paired_over_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Judge by the paired t test (Student 1908).

    first, second: accuracies on the same two or more seeds, in the same order.
    """
    differences = np.subtract(first, second)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    p_value = float(mean == 0) if spread == 0 else float(stats.ttest_1samp(differences, 0.0).pvalue)
    interval = t_interval(differences.tolist())
    return Difference("paired t over seeds", len(first), mean, interval, p_value, seeds_needed(mean, spread))


def unpaired_over_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Judge by Welch's t test (Welch 1947). first, second: accuracies on two or more seeds each."""
    value = float(np.mean(first) - np.mean(second))
    fewest = min(len(first), len(second))
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return Difference(
            "Welch's t over seeds", fewest, value, Interval(value, value), 1.0 if value == 0 else 0.0, None
        )
    found = stats.ttest_ind(first, second, equal_var=False)
    low, high = found.confidence_interval(CONFIDENCE)
    spread = math.sqrt(float(np.var(first, ddof=1) + np.var(second, ddof=1)))
    return Difference(
        "Welch's t over seeds",
        fewest,
        value,
        Interval(float(low), float(high)),
        float(found.pvalue),
        seeds_needed(value, spread),
    )


def mcnemar(first_is_right: npt.NDArray[np.bool_], second_is_right: npt.NDArray[np.bool_]) -> Difference:
    """Judge two networks on the same examples by the exact test (McNemar 1947), not the configurations behind them.

    first_is_right, second_is_right: (N,). The test is the binomial one on the examples that only one network gets
    right. The interval is Clopper and Pearson's (1934) of that binomial, given the number of those examples.
    """
    only_first = int((first_is_right & ~second_is_right).sum())
    only_second = int((~first_is_right & second_is_right).sum())
    discordant, num_examples = only_first + only_second, len(first_is_right)
    value = (only_first - only_second) / num_examples
    if discordant == 0:
        return Difference("exact McNemar", 1, 0.0, Interval(0.0, 0.0), 1.0, None)
    test = stats.binomtest(only_first, discordant)
    share = test.proportion_ci(CONFIDENCE, method="exact")
    low, high = ((2 * end - 1) * discordant / num_examples for end in (share.low, share.high))
    # Two networks of one configuration would differ by this, were each of these examples a coin's throw.
    spread = math.sqrt(discordant) / num_examples
    return Difference(
        "exact McNemar", 1, value, Interval(float(low), float(high)), float(test.pvalue), seeds_needed(value, spread)
    )


def of_proportions(first: tuple[int, int], second: tuple[int, int]) -> Difference:
    """Judge two networks on different examples by the score test, by statsmodels.

    first, second: (right, of). The interval is Newcombe's (1998, method 10).
    """
    from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

    low, high = confint_proportions_2indep(*first, *second, method="newcomb", alpha=1 - CONFIDENCE)
    p_value = test_proportions_2indep(*first, *second, method="score", correction=False).pvalue
    value = first[0] / first[1] - second[0] / second[1]
    return Difference("Newcombe", 1, value, Interval(float(low), float(high)), float(p_value), None)


def seeds_needed(difference: float, spread: float) -> int | None:
    """Return how many seeds a paired t test needs to see `difference` with POWER, by statsmodels (noncentral t).

    None for a difference of 0, and where MOST_SEEDS are not enough.
    spread: the standard deviation over seeds of the paired difference.
    """
    if difference == 0:
        return None
    if spread == 0:
        return FEWEST_SEEDS
    effect = abs(difference) / spread
    counts = range(FEWEST_SEEDS, MOST_SEEDS + 1)
    # Power grows with the number of seeds.
    first = bisect.bisect_left(counts, POWER, key=lambda count: TTestPower().power(effect, count, 1 - CONFIDENCE))
    return counts[first] if first < len(counts) else None
