"""A hyperparameter is a field of the config and its point of use; everything else follows from the field."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mnist_ray"
FIELD = "    dropout: float = Field(\n"
USE = "model.parameters(), config.learning_rate"


@pytest.fixture
def changed_package(tmp_path: Path) -> Path:
    """A folder with a copy of the package in which the learning rate is divided by a new `damping`."""
    shutil.copytree(PACKAGE, tmp_path / "mnist_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in (
        ("config.py", FIELD, "    damping: float = Field(1.0, gt=0)\n" + FIELD),
        ("training/loop.py", USE, f"{USE} / config.damping"),
    ):
        path = tmp_path / "mnist_ray" / name
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
    return tmp_path


def run_with(folder: Path, space: str) -> "subprocess.CompletedProcess[str]":
    settings = [
        "search.num_trials=2", "search.num_epochs=1", "final=null", "retrain.num_epochs=1", "retrain.workers=1",
        "data.num_validation=1200", f"search.space={space}",
    ]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "mnist_ray.cli",
        "run",
        str(PACKAGE.parent / "jobs" / "quickstart.yaml"),
        "--local",
    ]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=280)


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "RAY_ADDRESS": ""}


def test_field_and_use_are_enough(changed_package: Path) -> None:
    """The search varies it; table, tables for people, study and report show it."""
    import optuna
    import pandas as pd

    done = run_with(changed_package, "{damping: {choices: [1.0, 9.0]}}")
    assert done.returncode == 0, done.stderr
    run = changed_package / "results" / "quickstart"
    table = pd.read_csv(run / "results.csv")
    trials = table[table["stage"] == "search"]
    assert set(trials["damping"]) <= {1.0, 9.0}
    assert "damping: " in (run / "best.yaml").read_text()
    assert "damping" in (run / "results.md").read_text()
    assert "damping" in (run / "report.html").read_text()
    study = optuna.load_study(study_name="quickstart", storage=f"sqlite:///{run / 'study.sqlite3'}")
    assert all(
        "damping" in trial.params for trial in study.trials[1:]
    )  # the first is the recipe, no point of the space


def test_new_field_is_checked(changed_package: Path) -> None:
    done = run_with(changed_package, "{damping: {low: -1.0, high: 2.0}}")
    assert done.returncode == 2
    assert "search.space.damping holds -1.0, which must be greater than 0" in done.stderr
