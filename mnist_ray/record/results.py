"""The results table: its columns, writing and reading it, and the choice of the best trial."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mnist_ray.config import JobSpec, Search
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.study import direction

# One row per training. pandas' nullable types, so that a missing number stays missing and a count stays whole.
COLUMNS = {
    "id": "string",
    "stage": "string",  # search, retrain
    "role": "string",  # trial, choice, baseline; superseded where a longer search chose another
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
    "elapsed_s": "Float64",  # of its epochs, start-up aside
    "workers": "Int64",
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


@dataclass(frozen=True)
class Choice:
    """The trial that validation prefers, and what it was preferred for."""

    training: Training
    score: float  # the objective at its last epoch
    is_complete: bool  # False where the time budget ended the search before any trial reached the full budget


def choose(search: Search, trials: Sequence[Training]) -> Choice | None:
    """The best by the objective at the last epoch, of the trials that reached the full budget.

    Where the time budget left none, of those that got furthest. Ties go to the earlier trial. None if no trial
    has an epoch that counts.
    """
    complete = [trial for trial in trials if trial.status == "complete"]
    candidates = complete or _furthest([trial for trial in trials if trial.status in ("pruned", "stopped")])
    if not candidates:
        return None
    pick = max if direction(search) == "maximize" else min
    best = pick(candidates, key=lambda trial: float(trial.history[-1][search.objective]))
    return Choice(best, best.history[-1][search.objective], bool(complete))


def _furthest(trials: Sequence[Training]) -> list[Training]:
    most = max((trial.epochs_done for trial in trials), default=0)
    return [trial for trial in trials if trial.epochs_done == most > 0]


def results_table(run: RunDir) -> pd.DataFrame:
    """One row per training on record, typed as COLUMNS says."""
    tested = (run.stage("tested") or {}).get("scores", {})
    roles = {plan["id"]: plan["role"] for plan in (run.stage("chosen") or {}).get("retrainings", [])}
    place = {training_id: number for number, training_id in enumerate(roles)}  # the choice before the baseline
    retrained = sorted(run.trainings("retrain"), key=lambda training: place.get(training.id, len(place)))
    rows = [_row(training, "trial", tested) for training in run.trainings("search")]
    rows += [_row(training, roles.get(training.id, "superseded"), tested) for training in retrained]
    return _typed(pd.DataFrame(rows, columns=list(COLUMNS)))


STAGES = ("search", "retrain")


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


def read_results(path: Path) -> pd.DataFrame:
    """Read results.csv or results.parquet with the types of COLUMNS."""
    if path.suffix == ".parquet":
        return _typed(pd.read_parquet(path))
    # Only an empty cell is missing: pandas would also take the reason "None" for nothing.
    return _typed(pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, na_values=[""]))


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


def results_markdown(table: pd.DataFrame, spec: JobSpec) -> str:
    """The table for people: the rows that were tested first, then the trials, best first."""
    retrained = table[table["stage"] == "retrain"]
    trials = table[table["stage"] == "search"]
    ascending = direction(spec.search) == "minimize"
    complete_first = trials["status"].map({"complete": 0}).fillna(1)
    trials = trials.assign(_rank=complete_first).sort_values(
        ["_rank", spec.search.objective], ascending=[True, ascending]
    )
    parts = [f"# Results of {spec.name}", ""]
    if len(retrained):
        parts += ["## Retrained models", "", _markdown(retrained, RETRAINED_COLUMNS), ""]
    if len(trials):
        parts += ["## Trials, best first", "", _markdown(trials, TRIAL_COLUMNS), ""]
    return "\n".join(parts)


HYPERPARAMETER_COLUMNS = ["learning_rate", "dropout", "batch_size"]
RETRAINED_COLUMNS = [
    "role", "status", *HYPERPARAMETER_COLUMNS, "seed", "epochs_done", "test_accuracy", "test_correct", "test_loss",
    "train_loss", "elapsed_s", "workers",
]  # fmt: skip
TRIAL_COLUMNS = [
    "id", "status", *HYPERPARAMETER_COLUMNS, "epochs_done", "val_loss", "val_accuracy", "elapsed_s", "reason",
]  # fmt: skip


def _markdown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    formatted = pd.DataFrame({name: [_cell(name, value) for value in table[name]] for name in columns})
    return str(formatted.to_markdown(index=False, disable_numparse=True))


def _cell(name: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if name.endswith("_accuracy"):
        return f"{100 * value:.2f} %"
    if name.endswith("_s"):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")


def read_outcome(run: RunDir) -> dict[str, Any]:
    """result.json as `write_views` wrote it. Raises OSError, ValueError."""
    outcome: dict[str, Any] = json.loads(run.outcome.read_text(encoding="utf-8"))
    return outcome


def summary_lines(table: pd.DataFrame) -> list[str]:
    """The trials' counts, the retrained models and what the choice is worth against the recipe."""
    trials = table[table["stage"] == "search"]
    counts = trials["status"].value_counts()
    lines = [f"{len(trials)} trials: " + ", ".join(f"{count} {status}" for status, count in counts.items())]
    retrained = table[(table["stage"] == "retrain") & (table["role"] != "superseded")]
    lines += [_model_line(row) for row in retrained.to_dict("records")]
    return [*lines, *_against_recipe(retrained)] if len(trials) else lines[1:]


def _model_line(row: Mapping[Any, Any]) -> str:
    recipe = ", ".join(f"{name} {row[name]:.4g}" for name in HYPERPARAMETER_COLUMNS)
    if pd.isna(row["test_accuracy"]):
        return f"{row['role']} (seed {row['seed']}): {row['status']}; {recipe}"
    return (
        f"{row['role']} (seed {row['seed']}): test {100 * row['test_accuracy']:.2f} % "
        f"({row['test_correct']} of {row['test_examples']}), loss {row['test_loss']:.4f}; {recipe}"
    )


def _against_recipe(retrained: pd.DataFrame) -> list[str]:
    if (retrained["role"] == ROLE_OF_CHOICE_AND_RECIPE).any():
        return ["outcome: the search found nothing that validation prefers to the recipe"]
    means = retrained.groupby("role")["test_accuracy"].mean()
    if not {"choice", "baseline"} <= set(means.dropna().index):
        return []
    num_seeds = int((retrained["role"] == "choice").sum())
    return [
        f"outcome: the choice is {100 * (means['choice'] - means['baseline']):+.2f} points of test accuracy from the "
        f"recipe, over {num_seeds} seed{'s' if num_seeds > 1 else ''}"
    ]


def listed_runs(runs: Sequence[RunDir]) -> str:
    """One line a run: its name, how far it is, its trials and the choice's test accuracy."""
    return _as_text([{"run": run.path.name, "stage": _latest_stage(run), **_choice_summary(run)} for run in runs])


def compared_runs(runs: Sequence[RunDir]) -> str:
    """The retrained models of several runs, side by side."""
    rows = []
    for run in runs:
        table = results_table(run)
        retrained = table[table["stage"] == "retrain"]
        rows += [{"run": run.path.name, **row} for row in retrained[RETRAINED_COLUMNS].to_dict("records")]
    return _as_text(rows) or "none of these runs has retrained a model yet"


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
    formatted = pd.DataFrame([{name: _cell(name, value) for name, value in row.items()} for row in rows])
    return str(formatted.to_string(index=False))
