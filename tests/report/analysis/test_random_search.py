"""The expected best of random search is that of a simulation."""

import numpy as np
import pytest

from mnist_ray.report.analysis.random_search import expected_best


def test_expected_best_matches_simulation() -> None:
    costs = [0.3, 0.1, 0.7, 0.2, 0.5]
    found = expected_best(costs, 8)
    random = np.random.default_rng(0)
    for budget in (1, 2, 5, 8):
        lowest = random.choice(costs, size=(20_000, budget)).min(axis=1)
        assert found.mean[budget - 1] == pytest.approx(lowest.mean(), abs=0.006)
        assert found.low[budget - 1] == pytest.approx(np.quantile(lowest, 0.05, method="inverted_cdf"))
        assert found.high[budget - 1] == pytest.approx(np.quantile(lowest, 0.95, method="inverted_cdf"))
