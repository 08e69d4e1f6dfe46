"""The cost of a run is that of its own trainings, on the processors that they had."""

from dataclasses import replace
from pathlib import Path

import pytest

from mnist_ray.record.state import RunState
from mnist_ray.record.tables import history_table
from mnist_ray.report.analysis.costs import costs, tuning_cost
from tests.report.made_up import made_up_spec, make_up


def test_every_epoch_is_counted_once(tmp_path: Path) -> None:
    state = make_up(made_up_spec(tmp_path)).state
    found = {each.step: each for each in costs(state)}
    history = history_table(state)
    assert list(found) == ["data", "search", "final", "retrain", "test"]
    for stage in ("search", "final", "retrain"):
        rows = history[history["stage"] == stage]
        assert (found[stage].num_epochs, found[stage].num_trainings) == (len(rows), rows["id"].nunique())
        assert found[stage].cpu_s == pytest.approx(rows["elapsed_s"].sum())
    tuning = tuning_cost(costs(state))
    assert tuning is not None and tuning.num_epochs == found["search"].num_epochs + found["final"].num_epochs
    assert tuning.wall_s == 38.0


def test_processors_are_counted_as_used(tmp_path: Path) -> None:
    """A worker counts with its threads, a trial with its share of a GPU."""
    state = make_up(made_up_spec(tmp_path, search={"gpus_per_trial": 0.25})).state
    for trial in state.trainings("search"):
        assert trial.ended
        trial.ended = replace(trial.ended, device="cuda")
    for training in state.trainings("retrain"):
        assert training.ended
        training.ended = replace(training.ended, workers=2, threads=3)
    found = {each.step: each for each in costs(state)}
    assert found["search"].cpu_s == found["retrain"].gpu_s == 0.0
    assert found["search"].gpu_s == pytest.approx(seconds(state, "search") * 0.25)
    assert found["retrain"].cpu_s == pytest.approx(seconds(state, "retrain") * 6)


def seconds(state: RunState, stage: str) -> float:
    history = history_table(state)
    return float(history[history["stage"] == stage]["elapsed_s"].sum())


def test_models_of_another_run_cost_nothing(tmp_path: Path) -> None:
    state = make_up(made_up_spec(tmp_path)).state
    whole = {each.step: each for each in costs(state)}["retrain"]
    for training in state.trainings("retrain")[:3]:
        assert training.ended
        training.ended = replace(training.ended, taken_from="other/retrain-recipe-seed-0")
    rest = {each.step: each for each in costs(state)}["retrain"]
    assert (whole.num_trainings, rest.num_trainings) == (6, 3)
