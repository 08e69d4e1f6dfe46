"""A search whose trials differ by no more than seeds do is called noise, seldom wrongly."""

import math
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.report.analysis.noise import ALIKE, SeedSpread, noise_p_value
from mnist_ray.report.analysis.significance import SIGNIFICANT
from tests.report.analysis.test_search_review import review
from tests.report.made_up import Noise, made_up_spec, make_up


def test_search_in_noise_is_noticed(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path), loss=lambda config: 0.05, noise=Noise(loss=0.004))
    assert any("noise" in warning.text for warning in review(run).warnings)


def test_too_narrow_a_range_is_noticed(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 0.00099, "high": 0.00101, "log": True}}
    run = make_up(made_up_spec(tmp_path, search={"space": space}), noise=Noise(loss=0.002))
    assert any("too narrow" in warning.text for warning in review(run).warnings)


@pytest.mark.parametrize(("true_ratio", "at_least", "at_most"), [(0.0, 0.83, 0.9), (3.0, 0.06, 0.12), (5.0, 0.0, 0.01)])
def test_rates_of_suspicion(true_ratio: float, at_least: float, at_most: float) -> None:
    """20 trials, a spread with three degrees of freedom; true_ratio: between trials to between seeds, deviations."""
    random = np.random.default_rng(0)
    suspected = 0
    for _ in range(3000):
        scores = random.normal(0, math.sqrt(true_ratio**2 + 1), 20)
        spread = SeedSpread(math.sqrt(random.chisquare(3) / 3), 3)
        is_alike = float(np.std(scores, ddof=1)) < ALIKE * spread.deviation
        suspected += is_alike and noise_p_value(scores.tolist(), spread) >= SIGNIFICANT
    assert at_least <= suspected / 3000 <= at_most


def test_too_few_seeds_are_no_warning(tmp_path: Path) -> None:
    """Trials differ by some three times as much as seeds, of which one configuration has two."""
    space = {"learning_rate": {"low": 0.001, "high": 0.004, "log": True}}
    spec = made_up_spec(tmp_path, search={"space": space, "num_trials": 8}, final={"top_k": 1, "seeds": 2})
    found = review(make_up(spec, noise=Noise(loss=0.0008)))
    assert found.warnings == []
    assert any("too few seeds to be sure" in sentence for sentence in found.sentences)
