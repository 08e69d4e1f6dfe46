"""The tables of a report: the models, all trainings, the errors, the times, as texts for the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mnist_ray.config import SecondTest
from mnist_ray.metrics import Score
from mnist_ray.record.models import RetrainedModel, retrained_models
from mnist_ray.record.predictions import Predictions, images_of_test, predictions
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import Training
from mnist_ray.record.tables import HISTORY_COLUMNS
from mnist_ray.record.timing import num_retrained_at_once, stage_times, training_times
from mnist_ray.report.analysis.significance import wilson
from mnist_ray.report.formatting import (
    HYPERPARAMETERS,
    columns_in_use,
    heading,
    hyperparameter,
    hyperparameters_in_use,
    interval_in_percent,
    number,
    percent,
    seconds,
)
from mnist_ray.report.review import Review

MOST_IN_GALLERY = 120
MOST_ROWS = 1500  # of the table of all trainings; a page of more than 8 MB is too large to send


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many texts."""

    headings: list[str]
    rows: list[list[str]]


# --- the models ----------------------------------------------------------------------------------------------------


def models(review: Review) -> Table:
    """Return one row for each retrained model, then one for each ensemble of a side's seeds."""
    retrained = retrained_models(review.state)
    shown = hyperparameters_in_use(model.training.config for model in retrained)
    headings = [
        "role", "seed", *map(heading, shown), "epochs", "test accuracy", "95 % interval", "right", "loss", "ECE",
        "training",
    ]  # fmt: skip
    rows = [_model_row(review.run, model, shown) for model in retrained]
    for ensemble in review.ensembles:
        scored = _scored(ensemble.predictions.score, ensemble.predictions)
        seeds = ", ".join(map(str, ensemble.seeds))
        rows.append([ensemble.label, seeds, *("" for _ in shown), "", *scored, ""])
    return Table(headings, rows)


def _model_row(run: RunDir, model: RetrainedModel, shown: Sequence[str]) -> list[str]:
    training, score = model.training, model.scores.get("test")
    scored = [training.status or "running", "", "", "", ""]
    if score is not None:
        scored = _scored(score, predictions(run, training.id))
    values = [hyperparameter(training.config, name) for name in shown]
    identity = [model.side, str(training.config.seed), *values, str(training.epochs_done)]
    return [*identity, *scored, seconds(training.elapsed_s)]


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


# --- all trainings -------------------------------------------------------------------------------------------------

ROW_COLUMNS = [
    "id", "role", "status", *HYPERPARAMETERS, "seed", "epochs_done", "val_loss", "val_accuracy", "test_accuracy",
    "elapsed_s", "reason",
]  # fmt: skip
ROW_HEADINGS = {"id": "training", "epochs_done": "epochs", "elapsed_s": "seconds"}  # where not the column's own name


@dataclass(frozen=True)
class Cell:
    """A text with the number, in decimals, by which it is sorted."""

    text: str
    value: str | None = None


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
        [[_cell(str(name), value) for name, value in row.items()] for row in shown[columns].to_dict("records")],
        f"{num_missing:,} trials more are in results.csv." if num_missing else "",
    )


def _cell(name: str, value: Any) -> Cell:
    if pd.isna(value):
        return Cell("")
    if isinstance(value, str):
        return Cell(value)
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


# --- errors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MissedImage:
    """A test image that the selected model got wrong."""

    number: int  # in the test split
    label: int
    predicted: int
    confidence: str
    source: str  # the image as a data address


@dataclass(frozen=True)
class Errors:
    """The errors of the selected model."""

    text: str
    classes: Table
    gallery: list[MissedImage]
    gallery_text: str


def errors(review: Review) -> Errors | None:
    """Return the errors by class and a gallery, most confident first; None before the test."""
    model, found, images = review.model, review.predictions, images_of_test(review.run)
    if model is None or found is None or images is None:
        return None
    wrong = [int(number) for number in np.flatnonzero(~found.is_right)]
    wrong.sort(key=lambda number: (-found.confidence[number], number))
    gallery = [
        MissedImage(
            number,
            int(found.labels[number]),
            int(found.predicted[number]),
            f"{100 * found.confidence[number]:.1f} %",
            _png(images.image(number)),
        )
        for number in wrong[:MOST_IN_GALLERY]
    ]
    return Errors(
        f"{model.training.id}: {len(wrong):,} of {len(found.labels):,} test images wrong.",
        Table(
            ["class", "images", "wrong", "accuracy"], [_class_row(found, number) for number in range(found.num_classes)]
        ),
        gallery,
        f"{len(gallery)} of {len(wrong)}: true class → predicted class, with the model's confidence.",
    )


def _class_row(found: Predictions, number: int) -> list[str]:
    inside = found.labels == number
    total, wrong = int(inside.sum()), int((inside & ~found.is_right).sum())
    if not total:
        return [str(number), "0", "0", ""]
    interval = interval_in_percent(wilson(total - wrong, total))
    return [str(number), f"{total:,}", str(wrong), f"{percent(1 - wrong / total)} ({interval})"]


def _png(image: npt.NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


# --- times ---------------------------------------------------------------------------------------------------------


def stages(review: Review) -> Table:
    """Return the wall time and the summed training time of each stage."""
    return Table(
        ["stage", "wall time", "training, summed over trainings"],
        [
            [each.stage, seconds(each.wall_s), seconds(each.computing_s) if each.computing_s else ""]
            for each in stage_times(review.state)
        ],
    )


def time_text(review: Review) -> str:
    """Return the parts of the trainings' time in a sentence; empty before a training has ended."""
    times = training_times(review.trainings(), num_retrained_at_once(review.state))
    if not times:
        return ""
    queued_s, start_up_s, computing_s, waiting_s = (
        sum(getattr(each, part) for each in times) for part in ("queued_s", "start_up_s", "computing_s", "waiting_s")
    )
    total_s = start_up_s + computing_s + waiting_s or 1.0
    return (
        f"Summed over {len(times)} trainings: start-up {seconds(start_up_s)}, computing {seconds(computing_s)} "
        f"({100 * computing_s / total_s:.0f} %), waiting {seconds(waiting_s)}; queued before that {seconds(queued_s)}."
    )
