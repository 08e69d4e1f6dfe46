"""The expected best of random search is that of a simulation, and all trials are compared at one epoch."""

from pathlib import Path

import numpy as np
import pytest

from mnist_ray.report.analysis.random_search import expected_best
from mnist_ray.report.analysis.scores import scores_at
from tests.report.analysis.test_search_review import review
from tests.report.made_up import made_up_spec, make_up


def test_expected_best_matches_simulation() -> None:
    costs = [0.3, 0.1, 0.7, 0.2, 0.5]
    found = expected_best(costs, 8)
    random = np.random.default_rng(0)
    for budget in (1, 2, 5, 8):
        lowest = random.choice(costs, size=(20_000, budget)).min(axis=1)
        assert found.mean[budget - 1] == pytest.approx(lowest.mean(), abs=0.006)
        assert found.low[budget - 1] == pytest.approx(np.quantile(lowest, 0.05, method="inverted_cdf"))
        assert found.high[budget - 1] == pytest.approx(np.quantile(lowest, 0.95, method="inverted_cdf"))


@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_one_epoch_for_all(tmp_path: Path, objective: str) -> None:
    """A trial that went on is no better for that than one that was stopped at the first rung."""
    run = make_up(made_up_spec(tmp_path, search={"objective": objective}))
    trials, found = run.state.trainings("search"), review(run)
    assert {trial.status for trial in trials} == {"complete", "pruned"}
    assert found.epoch == min(trial.epochs_done for trial in trials)
    costs = [score if objective == "val_loss" else -score for score in scores_at(found.search, trials, found.epoch)]
    assert len(costs) == len(trials)
    assert [cost for _, cost in found.best_so_far] == list(np.minimum.accumulate(costs))
    assert found.expectation is not None
    assert set(found.expectation.low + found.expectation.high) <= set(costs)
