"""The interval of an accuracy is that of independent sources, and holds what it claims."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from mnist_ray.report.analysis.significance import wilson


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
