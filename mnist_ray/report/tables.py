"""The tables of a report: models, search, all trainings, costs, as texts for the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from mnist_ray.config import DecidedBy, Objective, SecondTest
from mnist_ray.metrics import Score
from mnist_ray.record.models import RetrainedModel, retrained_models
from mnist_ray.record.predictions import Predictions, predictions
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.selection import RECIPE, last_score, ranked
from mnist_ray.record.state import Training
from mnist_ray.record.tables import HISTORY_COLUMNS
from mnist_ray.report.analysis.costs import Cost
from mnist_ray.report.analysis.roles import RoleScores
from mnist_ray.report.analysis.significance import wilson
from mnist_ray.report.analysis.verdict import FORMAT
from mnist_ray.report.formatting import (
    HYPERPARAMETERS,
    columns_in_use,
    counted,
    duration,
    heading,
    hyperparameter,
    hyperparameters_in_use,
    interval_in_percent,
    interval_of,
    listed,
    number,
    percent,
    seconds,
    without_unused_parts,
)
from mnist_ray.report.review import Review

QUANTITIES: tuple[DecidedBy, ...] = ("test_accuracy", "test_loss")
MOST_CANDIDATES = 5  # trials in the table of the search's best, the finalists apart
MOST_ROWS = 1500  # of the table of all trainings; a page of more than 8 MB is too large to send


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many texts."""

    headings: list[str]
    rows: list[list[str]]


# --- the models ----------------------------------------------------------------------------------------------------


def roles(review: Review) -> Table:
    """Return each role's mean and spread over seeds, then their difference, if they were compared."""
    decided_by = review.spec.decided_by
    headings = [f"{heading(name)}{' (decides)' if name == decided_by else ''}" for name in QUANTITIES]
    rows = [
        [role.name, listed(role.seeds), *(_mean_and_spread(role, name) for name in QUANTITIES)] for role in review.roles
    ]
    if judged := review.verdict.judgement.quantities:
        differences = {name: judged[name].difference for name in QUANTITIES}
        cells = [
            f"{FORMAT[name](found.value)} ({interval_of(found.interval, FORMAT[name])})"
            for name, found in differences.items()
        ]
        rows.append(["difference", "", *cells])
    return Table(["role", "seeds", *headings], rows)


def _mean_and_spread(role: RoleScores, name: DecidedBy) -> str:
    mean, spread = role.mean(name), role.spread(name)
    shown, scale, digits = (percent(mean), 100, 2) if name == "test_accuracy" else (f"{mean:.4f}", 1, 4)
    return shown if spread is None else f"{shown} ± {scale * spread:.{digits}f}"


def models(review: Review) -> Table:
    """Return one row for each retrained model, then one for each ensemble of a side's seeds."""
    headings = ["role", "seed", "test accuracy", "95 % interval", "right", "test loss", "ECE", "epochs", "trained for"]
    rows = [_model_row(review.run, model) for model in retrained_models(review.state)]
    for ensemble in review.ensembles:
        scored = _scored(ensemble.predictions.score, ensemble.predictions)
        rows.append([ensemble.label, listed(ensemble.seeds), *scored, "", ""])
    return Table(headings, rows)


def _model_row(run: RunDir, model: RetrainedModel) -> list[str]:
    training, score = model.training, model.scores.get("test")
    scored = [training.status or "running", "", "", "", ""]
    if score is not None:
        scored = _scored(score, predictions(run, training.id))
    identity = [model.side, str(training.config.seed)]
    return [*identity, *scored, str(training.epochs_done), seconds(training.elapsed_s)]


def configurations(review: Review) -> Table:
    """Return one row for each hyperparameter in use, with a column for each role that was trained."""
    by_role = {model.side: model.training.config for model in retrained_models(review.state)}
    return Table(
        ["hyperparameter", *by_role],
        [
            [heading(name), *(hyperparameter(values, name) for values in by_role.values())]
            for name in hyperparameters_in_use(by_role.values())
        ]
        if by_role
        else [],
    )


def _scored(score: Score, found: Predictions | None) -> list[str]:
    return [
        percent(score.accuracy),
        interval_in_percent(wilson(score.num_correct, score.num_examples)),
        f"{score.num_correct:,} of {score.num_examples:,}",
        f"{score.loss:.4f}",
        percent(found.calibration_error()) if found else "",
    ]


def second_test_lines(review: Review, name: SecondTest) -> list[str]:
    """Return one line for each model that was scored on a second test."""
    scored = [(model.label, model.scores[name]) for model in retrained_models(review.state) if name in model.scores]
    lines = []
    for label, score in scored:
        interval = interval_in_percent(wilson(score.num_correct, score.num_examples))
        counts = f"{score.num_correct:,} of {score.num_examples:,}"
        lines.append(f"{label}: {percent(score.accuracy)} ({interval}; {counts}), loss {score.loss:.4f}")
    return lines


# --- the search ----------------------------------------------------------------------------------------------------


def candidates(review: Review) -> Table:
    """Return the search's best trials, its finalists and the recipe, with their scores there and on fresh seeds."""
    state, search, baseline = review.state, review.spec.search, review.spec.baseline
    fresh: dict[str, list[float]] = {}
    for training in state.trainings("final"):
        if training.of is not None and training.status == "complete":
            fresh.setdefault(training.of, []).append(last_score(search, training))
    names = hyperparameters_in_use(trial.config for trial in state.trainings("search"))
    objective = heading(search.objective)
    rows = []
    for rank, trial in enumerate(ranked(search, state.trainings("search"))):
        is_recipe = trial.config.hyperparameters == baseline
        scores = fresh.get(RECIPE if is_recipe and trial.number == 0 else trial.id, [])
        if rank < MOST_CANDIDATES or scores:
            remarks = ["the recipe"] * is_recipe + ["selected"] * (
                state.selected is not None and state.selected.training == trial.id
            )
            rows.append(
                [
                    f"{trial.id} ({', '.join(remarks)})" if remarks else trial.id,
                    _score(search.objective, last_score(search, trial)),
                    str(trial.epochs_done),
                    f"{_score(search.objective, fmean(scores))} ({counted(len(scores), 'seed')})" if scores else "",
                    *(hyperparameter(trial.config, name) for name in names),
                ]
            )
    return Table(["trial", objective, "epochs", f"{objective} in the final round", *map(heading, names)], rows)


def _score(objective: Objective, value: float) -> str:
    return percent(value) if objective == "val_accuracy" else f"{value:.4f}"


# --- all trainings -------------------------------------------------------------------------------------------------

ROW_COLUMNS = [
    "id", "status", "epochs_done", "val_loss", "val_accuracy", "test_accuracy", "elapsed_s",
    *HYPERPARAMETERS, "seed",
]  # fmt: skip
ROW_HEADINGS = {"id": "training", "epochs_done": "epochs", "elapsed_s": "seconds"}  # where not the column's own name


@dataclass(frozen=True)
class Cell:
    """A text with the number, in decimals, by which it is sorted, and a remark beneath it."""

    text: str
    value: str | None = None
    remark: str = ""


@dataclass(frozen=True)
class TrainingsTable:
    """The table that the page sorts and filters."""

    headings: list[str]
    rows: list[list[Cell]]
    note: str


def trainings(review: Review) -> TrainingsTable:
    """Return one row for each training, MOST_ROWS at most."""
    shown = _shown(review.table)
    num_missing = len(review.table) - len(shown)
    columns = columns_in_use(ROW_COLUMNS, review.trainings())
    return TrainingsTable(
        [ROW_HEADINGS.get(name, heading(name)) for name in columns],
        [[_cell(name, row[name], row) for name in columns] for row in without_unused_parts(shown).to_dict("records")],
        f"{num_missing:,} trials more are in results.csv." if num_missing else "",
    )


REMARKS = {"id": "role", "status": "reason"}  # the columns that stand beneath another one


def _cell(name: str, value: Any, row: Mapping[Any, Any]) -> Cell:
    if pd.isna(value):
        return Cell("")
    if isinstance(value, str):
        remark = row[REMARKS[name]] if name in REMARKS else ""
        return Cell(value, remark="" if pd.isna(remark) or remark == "trial" else remark)
    text = number(value)
    if name.endswith("_accuracy"):
        text = percent(value)
    if name.endswith("_s"):
        text = f"{value:.1f}"
    return Cell(text, repr(value) if isinstance(value, float) else str(value))


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return MOST_ROWS of a table at most, in its order; pruned trials are left out first, then other trials."""
    if len(table) <= MOST_ROWS:
        return table
    is_trial, is_complete = table["stage"] == "search", table["status"] == "complete"
    order = pd.concat([table[~is_trial], table[is_trial & is_complete], table[is_trial & ~is_complete]])
    return order.head(MOST_ROWS).sort_index()


@dataclass(frozen=True)
class Curve:
    """A training's metrics by epoch, as report.js reads them."""

    epochs: list[int]
    series: dict[str, list[float]]  # by metric, one value an epoch, with five digits


def training_curves(review: Review) -> dict[str, Curve]:
    """Return the curve of each training in the table."""
    shown = set(_shown(review.table)["id"])
    return {training.id: _curve(training) for training in review.trainings() if training.id in shown}


def _curve(training: Training) -> Curve:
    rows = [metrics.columns() for metrics in training.history]
    metrics_shown = [name for name in HISTORY_COLUMNS if name.endswith(("_loss", "_accuracy"))]
    return Curve(
        [metrics.epoch for metrics in training.history],
        {
            name: [float(f"{row[name]:.5g}") for row in rows]
            for name in metrics_shown
            if any(name in row for row in rows)
        },
    )


# --- costs ---------------------------------------------------------------------------------------------------------

STEPS = {
    "data": "loading the data",
    "search": "search",
    "final": "final round",
    "retrain": "retraining",
    "test": "test",
}


def costs(review: Review) -> Table:
    """Return one row for each step: trainings, epochs, wall time with its parts, and processor time."""
    return Table(
        ["step", "trainings", "epochs", "wall time", *PARTS_OF_WALL_TIME, "CPU time", "GPU time"],
        [
            [
                STEPS[each.step],
                f"{each.num_trainings:,}" if each.num_trainings else "",
                f"{each.num_epochs:,}" if each.num_epochs else "",
                "not over yet" if each.wall_s is None else duration(each.wall_s),
                *_parts_of_wall_time(review, each),
                duration(each.cpu_s) if each.cpu_s else "",
                duration(each.gpu_s) if each.gpu_s else "",
            ]
            for each in review.costs
        ],
    )


PARTS_OF_WALL_TIME = {"starting": "start_up_s", "computing": "computing_s", "waiting": "waiting_s"}


def _parts_of_wall_time(review: Review, cost: Cost) -> list[str]:
    """Divide a step's wall time as the time of its trainings is divided; queued ones take none of it."""
    ids = {training.id for training in review.trainings() if training.stage == cost.step}
    times = [each for each in review.times() if each.training_id in ids]
    sums = [sum(getattr(each, part) for each in times) for part in PARTS_OF_WALL_TIME.values()]
    if cost.wall_s is None or not sum(sums):
        return ["" for _ in sums]
    return [duration(cost.wall_s * part / sum(sums)) for part in sums]


def time_text(review: Review) -> str:
    """Return the parts of the trainings' time in a sentence; empty before a training has ended."""
    times = review.times()
    if not times:
        return ""
    queued_s, start_up_s, computing_s, waiting_s = (
        sum(getattr(each, part) for each in times) for part in ("queued_s", "start_up_s", "computing_s", "waiting_s")
    )
    total_s = start_up_s + computing_s + waiting_s or 1.0
    return (
        f"Summed over {counted(len(times), 'training')}: start-up {duration(start_up_s)}, computing "
        f"{duration(computing_s)} ({100 * computing_s / total_s:.0f} %), waiting {duration(waiting_s)}. "
        f"Before that they were queued for {duration(queued_s)}."
    )
