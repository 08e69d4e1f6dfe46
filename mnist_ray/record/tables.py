"""The tables of a run: one row per training, one row per epoch; their columns, writing and reading."""

import io
import re
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from mnist_ray.config import Hyperparameters, SecondTest, Stage, is_text, is_whole
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record.state import RunState, Training
from mnist_ray.shown import shown
from mnist_ray.storage.files import read

STAGES: tuple[Stage, ...] = get_args(Stage)


def _dtypes(row: dict[str, float | int]) -> dict[str, str]:
    return {name: "Int64" if isinstance(value, int) else "Float64" for name, value in row.items()}


def dtype_of(hyperparameter: str) -> str:
    """Return the pandas type of a hyperparameter's column."""
    if is_text(hyperparameter):
        return "string"
    return "Int64" if is_whole(hyperparameter) else "Float64"


_SCORE = Score(0.0, 0, 1)
_EPOCH_COLUMNS = _dtypes(EpochMetrics(1, 0.0, _SCORE, _SCORE, _SCORE).columns())

# One row per training. pandas' nullable types, so that a missing number stays missing and a count stays whole.
COLUMNS = {
    "id": "string",
    "stage": "string",  # search, final, retrain
    "role": "string",  # trial, finalist, selected, baseline; superseded where a longer search selected another
    "status": "string",  # complete, pruned, stopped, failed; running where it has not ended
    "reason": "string",
    **{name: dtype_of(name) for name in Hyperparameters.model_fields},
    "seed": "Int64",
    "num_epochs": "Int64",
    "epochs_done": "Int64",
    **{name: dtype for name, dtype in _EPOCH_COLUMNS.items() if name.startswith(("train_", "val_"))},
    **_dtypes(_SCORE.columns("test")),
    **{name: dtype for test in get_args(SecondTest) for name, dtype in _dtypes(_SCORE.columns(test)).items()},
    "elapsed_s": "Float64",  # of its epochs, start-up aside
    "workers": "Int64",  # at its end; an elastic retraining may have had more or fewer before
    "threads": "Int64",  # of each worker
    "device": "string",
    "num_failures": "Int64",  # how often it died and was started again
    "log": "string",  # where a failed training's log and traceback lie, below the run's folder
}

# One row per epoch of each training.
HISTORY_COLUMNS = {"id": "string", "stage": "string", **_EPOCH_COLUMNS}


def results_table(state: RunState) -> pd.DataFrame:
    """Return one row per training on record, typed as COLUMNS says."""
    planned = state.selected.retrainings if state.selected else ()
    roles = {plan.id: plan.role for plan in planned}
    order = {training_id: number for number, training_id in enumerate(roles)}  # the selected before the baseline
    retrained = sorted(state.trainings("retrain"), key=lambda training: order.get(training.id, len(order)))
    rows = [_row(training, "trial", state) for training in state.trainings("search")]
    rows += [_row(training, roles.get(training.id, "finalist"), state) for training in state.trainings("final")]
    rows += [_row(training, roles.get(training.id, "superseded"), state) for training in retrained]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _row(training: Training, role: str, state: RunState) -> dict[str, Any]:
    scores = state.tested.scores.get(training.id, {}) if state.tested else {}
    ended = training.ended
    known = {
        **training.config.model_dump(),
        **(training.history[-1].columns() if training.history else {}),
        **{name: value for test, scored in scores.items() for name, value in scored.score.columns(test).items()},
        "id": training.id,
        "stage": training.stage,
        "role": role,
        "status": training.status or "running",
        "reason": training.reason,
        "epochs_done": training.epochs_done,
        "elapsed_s": training.elapsed_s,
        "workers": ended and ended.workers,
        "threads": ended and ended.threads,
        "device": ended and ended.device,
        "num_failures": ended and ended.num_failures,
        "log": f"logs/{training.id}.log" if training.status == "failed" else None,
    }
    return {name: known.get(name) for name in COLUMNS}


def history_table(state: RunState) -> pd.DataFrame:
    """Return every epoch of every training, typed as HISTORY_COLUMNS says."""
    rows = [
        {"id": training.id, "stage": training.stage, **metrics.columns()}
        for stage in STAGES
        for training in state.trainings(stage)
        for metrics in training.history
    ]
    return pd.DataFrame(rows, columns=list(HISTORY_COLUMNS)).astype(HISTORY_COLUMNS)


FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")


def results_csv(table: pd.DataFrame) -> str:
    """Return the table as CSV.

    A text that a spreadsheet would run as a formula gets an apostrophe before it (OWASP, "CSV Injection"). So does a
    text that begins with an apostrophe, so that reading takes away what writing put there.
    """
    guarded = table.copy()
    for name, kind in COLUMNS.items():
        if kind == "string":
            risky = table[name].str.startswith((*FORMULA_BEGINNINGS, "'"), na=False)
            guarded[name] = table[name].where(~risky, "'" + table[name])
    # Before Python 3.13, a lone "\r" is quoted only where it is part of the line's end.
    content = guarded.to_csv(index=False, lineterminator="\r\n")
    return re.sub(r'("[^"]*")|\r\n', lambda found: found[1] or "\n", content)


def read_results(path: Path) -> pd.DataFrame:
    """Read results.csv or results.parquet with the types of COLUMNS. Raises OSError."""
    content = io.BytesIO(read(path))
    if path.suffix == ".parquet":
        return pd.read_parquet(content).astype(COLUMNS)
    # Only an empty cell is missing: pandas would also take the reason "None" for nothing.
    table = pd.read_csv(content, dtype=COLUMNS, keep_default_na=False, na_values=[""])
    for name, kind in COLUMNS.items():
        if kind == "string":
            table[name] = table[name].str.removeprefix("'")
    return table.astype(COLUMNS)


def cell(name: str, value: Any) -> str:
    """Format a value of that column for people, safe in a Markdown table."""
    if pd.isna(value):
        return ""
    if name.endswith("_accuracy"):
        return f"{100 * value:.2f} %"
    if name.endswith("_s"):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = shown(" ".join(str(value).split()))
    return re.sub(r"[\\|<\[]", lambda found: f"\\{found[0]}", text)  # no HTML, no link, no image, no further column
