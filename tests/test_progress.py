"""The progress display on terminals of two widths, without a terminal, quiet, from Python and in a notebook."""

import io
import logging
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from mnist_ray import LocalBackend, run_job, search_job
from mnist_ray.callbacks import TrainingInfo, TrainingOutcome
from mnist_ray.config import TrainingConfig
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.progress import ProgressDisplay
from tests.small_job import small_spec, use_few_images

METRICS = EpochMetrics(7, 11.2, Score(0.05, 90, 100), Score(0.0432, 97, 100))
TRIAL = TrainingInfo("trial-0003", "search", TrainingConfig(num_epochs=45), None)
CONFIG = TrainingConfig(num_epochs=45, seed=2)
CHOICE = TrainingInfo("retrain-trial-0003-seed-2", "retrain", CONFIG, "selected", "selected, seed 3 of 5")


def shown_by(quiet: bool = False, width: int = 80, is_terminal: bool = True) -> list[str]:
    """Return what a display of a small run prints, line by line, without colours."""
    output = io.StringIO()
    console = Console(
        file=output,
        width=width,
        height=30,
        force_terminal=is_terminal,
        soft_wrap=True,
        highlight=False,
        color_system=None,
    )
    with ProgressDisplay("val_loss", quiet, console) as display:
        display.on_stage_start("search", 20, 0, "trials")
        display.on_training_end(TRIAL, TrainingOutcome("pruned", "worse than 3 others", 5, METRICS))
        display.on_epoch(TRIAL, METRICS)
        display.on_stage_start("retrain", 90, 0, "epochs")
        display.on_epoch(CHOICE, METRICS)
        logging.getLogger("mnist_ray.somewhere").info("a message")
        logging.getLogger("mnist_ray.somewhere").warning("a warning")
    text = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", output.getvalue())
    return text.replace("\r", "\n").splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_bars_fit_the_terminal(width: int) -> None:
    bars = [line for line in shown_by(width=width) if "20 trials" in line or "90 epochs" in line]
    assert bars and all(len(line) <= width for line in bars)
    last = [line for line in bars if "trial-0003 epoch 7" in line][-1]
    assert re.match(r"search +\S+ +1/20 trials \d:\d\d:\d\d \S+ trial-0003 epoch 7 ", last)
    assert ("…" in last) == (width == 80)


def test_ended_trials_last_above_the_bars() -> None:
    lines = shown_by()
    (line,) = [line for line in lines if "pruned" in line]
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d search: trial-0003 pruned after 5 epochs val_loss 0\.0432 \(worse than 3 others\)",
        line.rstrip(),
    )


def test_first_seconds_have_a_word() -> None:
    for is_terminal in (True, False):
        first = next(line for line in shown_by(is_terminal=is_terminal) if line.strip())
        assert re.match(r"\d\d:\d\d:\d\d starting: ", first)


def test_retrainings_are_named_by_role_and_seed() -> None:
    assert any("selected, seed 3 of 5: epoch 7 of 45" in line for line in shown_by(width=120))


def test_quiet_shows_warnings_alone() -> None:
    assert shown_by(quiet=True) == ["a warning"]
    assert shown_by(quiet=True, is_terminal=False) == ["a warning"]


def test_python_shows_progress_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, and not at all with progress=False."""
    use_few_images(monkeypatch)
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    run_job(small_spec(tmp_path), LocalBackend())
    shown = errors.getvalue().splitlines()
    assert len([line for line in shown if "starting: " in line]) == 1
    assert len([line for line in shown if " search: done in " in line]) == 1
    errors.truncate(0)
    run_job(small_spec(tmp_path, name="silent"), LocalBackend(), progress=False)
    assert "done in" not in errors.getvalue()


def test_best_so_far_is_that_of_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)
    first = small_spec(tmp_path, search__num_trials=2, recipe={"batch_size": 10})  # more steps than any other trial
    search_job(first, LocalBackend(), progress=False)
    output = io.StringIO()
    with ProgressDisplay("val_loss", console=Console(file=output, soft_wrap=True)) as display:
        more = small_spec(tmp_path, search__num_trials=3, recipe={"batch_size": 10})
        run = search_job(more, LocalBackend(), [display], progress=False)
    trials = [trial for trial in run.state.trainings("search") if trial.status == "complete"]
    loss, best = min((trial.history[-1].objective("val_loss"), trial.id) for trial in trials)
    (ended,) = [line for line in output.getvalue().splitlines() if "trial-0002 complete" in line]
    assert best != "trial-0002", "the best trial is to be one of the first session"
    assert ended.endswith(f", best so far {loss:.4f} ({best})")


NOTEBOOK = """
from mnist_ray import LocalBackend, parse_spec, run_job
spec = parse_spec({content})
run = run_job(spec, LocalBackend())
"""


def test_notebook_shows_a_handful_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real kernel; the saved cell has one output, which was replaced as the run went on."""
    spec = small_spec(tmp_path, data={"name": "digits", "num_validation": 180})
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(NOTEBOOK.format(content=spec.model_dump(mode="json")))]
    )
    updates: list[str] = []

    class Client(NotebookClient):
        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            updates.extend([msg["msg_type"]] * (msg["msg_type"] == "update_display_data"))
            return super().process_message(msg, cell, cell_index)

    Client(notebook, kernel_name="python3", timeout=120).execute()
    *others, output = notebook.cells[0].outputs
    # tqdm, which Optuna imports, warns where ipywidgets is missing.
    assert all("IProgress not found" in other["text"] for other in others) and len(others) <= 1
    lines = output["data"]["text/plain"].splitlines()
    stages = [line.partition(":")[0] for line in lines if " done in " in line]
    assert stages == ["data", "search", "final", "retrain", "test"]
    assert len(lines) < 15 and updates
