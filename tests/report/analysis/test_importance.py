"""Importances find what matters, and say when they cannot."""

import math
from pathlib import Path

from mnist_ray.report.analysis.importance import importances
from tests.report.made_up import Noise, made_up_spec, make_up


def test_important_hyperparameter_is_found(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, search={"num_trials": 150})
    run = make_up(spec, loss=lambda config: 0.05 + 0.02 * abs(math.log(config.learning_rate / 0.002)), until="searched")
    trials = run.state.trainings("search")
    found = importances(spec, trials, 2)
    assert found.shares[0].name == "learning_rate"
    assert "learning_rate matters most" in found.sentence
    assert all(0 <= each.low <= each.high <= 1 for each in found.shares)
    few = importances(spec, trials[:20], 2)
    assert few.shares == [] and "Too few trials" in few.sentence


def test_noise_has_no_important_hyperparameter(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, search={"num_trials": 60})
    run = make_up(spec, loss=lambda config: 0.05, noise=Noise(loss=0.004), until="searched")
    assert "cannot be told" in importances(spec, run.state.trainings("search"), 2).sentence
