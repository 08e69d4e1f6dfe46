"""The results table: its columns, writing and reading it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mnist_ray.config import JobSpec
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.storage.files import read

# One row per training. pandas' nullable types, so that a missing number stays missing and a count stays whole.
COLUMNS = {
    "id": "string",
    "stage": "string",  # search, confirm, retrain
    "role": "string",  # trial, confirmation, choice, baseline; superseded where a longer search chose another
    "status": "string",  # complete, pruned, stopped, failed; running where it has not ended
    "reason": "string",
    "learning_rate": "Float64",
    "dropout": "Float64",
    "batch_size": "Int64",
    "seed": "Int64",
    "num_epochs": "Int64",
    "epochs_done": "Int64",
    "train_loss": "Float64",
    "train_accuracy": "Float64",
    "train_correct": "Int64",
    "train_examples": "Int64",
    "val_loss": "Float64",
    "val_accuracy": "Float64",
    "val_correct": "Int64",
    "val_examples": "Int64",
    "test_loss": "Float64",
    "test_accuracy": "Float64",
    "test_correct": "Int64",
    "test_examples": "Int64",
    "qmnist50k_loss": "Float64",  # a second test, where test.also asks for it
    "qmnist50k_accuracy": "Float64",
    "qmnist50k_correct": "Int64",
    "qmnist50k_examples": "Int64",
    "elapsed_s": "Float64",  # of its epochs, start-up aside
    "workers": "Int64",  # at its end; an elastic retraining may have had more or fewer before
    "threads": "Int64",  # of each worker
    "device": "string",
    "num_failures": "Int64",  # how often it died and was started again
    "log": "string",  # where a failed training's log and traceback lie, below the run's folder
}

# One row per epoch of each training.
HISTORY_COLUMNS = {
    "id": "string",
    "stage": "string",
    "epoch": "Int64",
    "elapsed_s": "Float64",
    **{name: kind for name, kind in COLUMNS.items() if name.startswith(("train_", "val_"))},
}

ROLE_OF_CHOICE_AND_RECIPE = "choice = baseline"  # the search found nothing better than the recipe


def results_table(run: RunDir) -> pd.DataFrame:
    """One row per training on record, typed as COLUMNS says."""
    tested = (run.stage("tested") or {}).get("scores", {})
    roles = {plan["id"]: plan["role"] for plan in (run.stage("chosen") or {}).get("retrainings", [])}
    place = {training_id: number for number, training_id in enumerate(roles)}  # the choice before the baseline
    retrained = sorted(run.trainings("retrain"), key=lambda training: place.get(training.id, len(place)))
    rows = [_row(training, "trial", tested) for training in run.trainings("search")]
    rows += [_row(training, "confirmation", tested) for training in run.trainings("confirm")]
    rows += [_row(training, roles.get(training.id, "superseded"), tested) for training in retrained]
    return _typed(pd.DataFrame(rows, columns=list(COLUMNS)))


STAGES = ("search", "confirm", "retrain")


def _row(training: Training, role: str, tested: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ended = training.ended or {"status": "running", "reason": None}
    last = training.history[-1] if training.history else {}
    known = {
        "id": training.id,
        "stage": training.stage,
        "role": role,
        "epochs_done": training.epochs_done,
        **training.config,
        **ended,
        **last,
        **tested.get(training.id, {}),
        "log": f"logs/{training.id}.log" if training.status == "failed" else None,
        "elapsed_s": sum(row["elapsed_s"] for row in training.history),
    }
    return {name: known.get(name) for name in COLUMNS}


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(COLUMNS)


def history_table(run: RunDir) -> pd.DataFrame:
    """Every epoch of every training, typed as HISTORY_COLUMNS says."""
    rows = [
        {"id": training.id, "stage": training.stage, **row}
        for stage in STAGES
        for training in run.trainings(stage)
        for row in training.history
    ]
    return pd.DataFrame(rows, columns=list(HISTORY_COLUMNS)).astype(HISTORY_COLUMNS)


FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")


def results_csv(table: pd.DataFrame) -> str:
    """As CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it (OWASP, "CSV Injection"),
    and so does one that begins with an apostrophe, so that reading takes away what writing put there.
    """
    guarded = table.copy()
    for name, kind in COLUMNS.items():
        if kind == "string":
            risky = table[name].str.startswith((*FORMULA_BEGINNINGS, "'"), na=False)
            guarded[name] = table[name].where(~risky, "'" + table[name])
    return guarded.to_csv(index=False)


def read_results(path: Path) -> pd.DataFrame:
    """Read results.csv or results.parquet with the types of COLUMNS."""
    if path.suffix == ".parquet":
        return _typed(pd.read_parquet(path))
    # Only an empty cell is missing: pandas would also take the reason "None" for nothing.
    table = pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, na_values=[""])
    for name, kind in COLUMNS.items():
        if kind == "string":
            table[name] = table[name].str.removeprefix("'")
    return _typed(table)


def best_spec(spec: JobSpec, hyperparameters: dict[str, Any]) -> JobSpec:
    """A spec that trains the choice again: the choice is its recipe (`mnist-ray train best.yaml`)."""
    content = spec.model_dump()
    content["recipe"] = hyperparameters
    content["retrain"]["baseline"] = False
    content["name"] = f"{spec.name[:59]}-best"
    return JobSpec.model_validate(content)


def outcome_of(run: RunDir, spec: JobSpec) -> dict[str, Any]:
    """What came of the run, for programs: counts, the choice, the tested models, the times of the stages."""
    trials = run.trainings("search")
    statuses = [trial.status or "running" for trial in trials]
    chosen, tested = run.stage("chosen"), run.stage("tested")
    return {
        "name": spec.name,
        "data": spec.data.name,
        "objective": spec.search.objective,
        "trials": {status: statuses.count(status) for status in sorted(set(statuses))},
        "choice": chosen and {key: chosen[key] for key in ("training", "hyperparameters", "score")},
        "tested": _scores(tested) if tested else {},
        "test_unsealed_at": (run.stage("unsealed") or {}).get("at"),
        "num_events": run.num_events,  # how much of the record this shows
        "stages": [{key: entry.get(key) for key in ("stage", "at", "elapsed_s")} for entry in run.all_stages()],
    }


def _scores(tested: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        training_id: {name: value for name, value in score.items() if name in COLUMNS}
        for training_id, score in tested["scores"].items()
    }


def cell(name: str, value: Any) -> str:
    """A value of that column for people, safe in a Markdown table."""
    if pd.isna(value):
        return ""
    if name.endswith("_accuracy"):
        return f"{100 * value:.2f} %"
    if name.endswith("_s"):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<")


def read_outcome(run: RunDir) -> dict[str, Any]:
    """result.json as `write_views` wrote it. Raises OSError, ValueError."""
    outcome: dict[str, Any] = json.loads(read(run.outcome))
    return outcome


def is_superseded(table: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are retrainings of an earlier choice, before more trials were searched."""
    return table["role"] == "superseded"


def listed_runs(runs: Sequence[RunDir]) -> str:
    """One line a run: its name, how far it is, its trials and the choice's test accuracy."""
    return _as_text([{"run": run.path.name, "stage": _latest_stage(run), **_choice_summary(run)} for run in runs])


def _latest_stage(run: RunDir) -> str:
    entries = run.all_stages()
    return str(entries[-1]["stage"]) if entries else "begun"


def _choice_summary(run: RunDir) -> dict[str, Any]:
    table = results_table(run)
    choice = table[table["role"].str.startswith("choice")]
    return {"trials": int((table["stage"] == "search").sum()), "test_accuracy": choice["test_accuracy"].mean()}


def _as_text(rows: Sequence[dict[Any, Any]]) -> str:
    if not rows:
        return ""
    formatted = pd.DataFrame([{name: cell(name, value) for name, value in row.items()} for row in rows])
    return str(formatted.to_string(index=False))
