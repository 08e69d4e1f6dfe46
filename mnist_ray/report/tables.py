"""The tables of a report: the models, all trainings, the errors, the times, as texts for the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.tables import HISTORY_COLUMNS
from mnist_ray.record.timing import stage_times, training_times
from mnist_ray.report.analysis.predictions import NUM_CLASSES, Predictions, images_of_test, predictions
from mnist_ray.report.analysis.significance import wilson
from mnist_ray.report.review import Review
from mnist_ray.report.summary import interval_of, percent, retrained_rows

MOST_IN_GALLERY = 120
MOST_ROWS = 1500  # of the table of all trainings; a page of more than 8 MB is no longer one to send

# --- the models ----------------------------------------------------------------------------------------------------

MODEL_HEADINGS = [
    "role", "seed", "learning rate", "dropout", "batch size", "epochs", "test accuracy", "95 % interval", "right",
    "loss", "ECE", "training",
]  # fmt: skip


def models(review: Review) -> dict[str, Any]:
    rows = retrained_rows(review.table).to_dict("records")
    return {
        "model_headings": MODEL_HEADINGS,
        "models": [_model_cells(review.run, row) for row in rows],
        "second": _second_test(review, rows),
    }


def _model_cells(run: RunDir, row: Mapping[Any, Any]) -> list[str]:
    tested = not pd.isna(row["test_accuracy"])
    said = predictions(run, row["id"]) if tested else None
    return [
        row["role"],
        str(row["seed"]),
        f"{row['learning_rate']:.4g}",
        f"{row['dropout']:.4g}",
        str(row["batch_size"]),
        str(row["epochs_done"]),
        f"{100 * row['test_accuracy']:.2f} %" if tested else row["status"],
        percent(interval_of(row)) if tested else "",
        f"{row['test_correct']:,} of {row['test_examples']:,}" if tested else "",
        f"{row['test_loss']:.4f}" if tested else "",
        f"{100 * said.calibration_error():.2f} %" if said else "",
        f"{row['elapsed_s']:.1f} s",
    ]


def _second_test(review: Review, rows: Sequence[Mapping[Any, Any]]) -> dict[str, Any] | None:
    names = review.spec.test.also
    tested = [row for row in rows for name in names if not pd.isna(row[f"{name}_accuracy"])]
    if not tested:
        return None
    (name,) = names
    lines = [
        f"{row['role']}, seed {row['seed']}: {100 * row[f'{name}_accuracy']:.2f} % "
        f"({percent(interval_of(row, name))}; {row[f'{name}_correct']:,} of {row[f'{name}_examples']:,}), "
        f"loss {row[f'{name}_loss']:.4f}"
        for row in tested
    ]
    return {"name": name, "lines": lines}


# --- all trainings -------------------------------------------------------------------------------------------------

ROW_COLUMNS = {
    "id": "training", "role": "role", "status": "status", "learning_rate": "learning rate", "dropout": "dropout",
    "batch_size": "batch size", "seed": "seed", "epochs_done": "epochs", "val_loss": "val loss",
    "val_accuracy": "val accuracy", "test_accuracy": "test accuracy", "elapsed_s": "seconds", "reason": "reason",
}  # fmt: skip


def rows(review: Review) -> dict[str, Any]:
    table = _shown(review.table)
    records = table[list(ROW_COLUMNS)].to_dict("records")
    missing = len(review.table) - len(table)
    return {
        "rows_note": f"{missing:,} trials more are in results.csv." if missing else "",
        "row_headings": list(ROW_COLUMNS.values()),
        "rows": [[_cell(str(name), value) for name, value in record.items()] for record in records],
    }


def _cell(name: str, value: Any) -> dict[str, Any]:
    """text: as shown; value: what a number sorts by."""
    if pd.isna(value):
        return {"text": "", "value": None}
    if isinstance(value, str):
        return {"text": value, "value": None}
    if name.endswith("_accuracy"):
        text = f"{100 * value:.2f} %"
    elif name == "elapsed_s":
        text = f"{value:.1f}"
    else:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return {"text": text, "value": repr(value) if isinstance(value, float) else str(value)}


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """MOST_ROWS of it at most, in its order: trials are left out first, of them those that were stopped early."""
    if len(table) <= MOST_ROWS:
        return table
    is_trial, is_complete = table["stage"] == "search", table["status"] == "complete"
    order = pd.concat([table[~is_trial], table[is_trial & is_complete], table[is_trial & ~is_complete]])
    return order.head(MOST_ROWS).sort_index()


def curve_data(review: Review) -> dict[str, Any]:
    """By training of the table: its epochs and what was measured after each."""
    shown = set(_shown(review.table)["id"])
    return {training.id: _curve(training) for training in review.trainings() if training.id in shown}


def _curve(training: Training) -> dict[str, Any]:
    names = [
        name
        for name in HISTORY_COLUMNS
        if name.endswith(("_loss", "_accuracy")) and any(name in row for row in training.history)
    ]
    return {
        "epochs": [row["epoch"] for row in training.history],
        "series": {name: [float(f"{row[name]:.5g}") for row in training.history] for name in names},
    }


# --- errors --------------------------------------------------------------------------------------------------------


def errors(review: Review) -> dict[str, Any]:
    said, images = review.choice_said, images_of_test(review.run)
    if said is None or images is None:
        return {"error_text": "", "classes": [], "gallery": [], "gallery_text": ""}
    wrong = [int(number) for number in np.flatnonzero(~said.is_right)]
    wrong.sort(key=lambda number: (-said.confidence[number], number))
    place = {int(number): index for index, number in enumerate(images.missed)}
    shown = wrong[:MOST_IN_GALLERY]
    gallery = [
        {
            "number": number,
            "label": int(said.labels[number]),
            "said": int(said.said[number]),
            "confidence": f"{100 * said.confidence[number]:.1f} %",
            "source": _png(images.images[place[number]]),
        }
        for number in shown
    ]
    return {
        "error_text": f"{review.choice}: {len(wrong):,} of {len(said.labels):,} test images wrong.",
        "classes": [_class_row(said, number) for number in range(NUM_CLASSES)],
        "gallery": gallery,
        "gallery_text": f"{len(shown)} of {len(wrong)}: true class → what the model said, and how sure it was.",
    }


def _class_row(said: Predictions, number: int) -> list[str]:
    inside = said.labels == number
    total, wrong = int(inside.sum()), int((inside & ~said.is_right).sum())
    if not total:
        return [str(number), "0", "0", ""]
    interval = wilson(total - wrong, total)
    return [str(number), f"{total:,}", str(wrong), f"{100 * (1 - wrong / total):.2f} % ({percent(interval)})"]


def _png(image: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


# --- times ---------------------------------------------------------------------------------------------------------


def times(review: Review) -> dict[str, Any]:
    spent = training_times(review.trainings())
    text = ""
    if spent:
        sums = {part: sum(getattr(each, part) for each in spent) for part in ("start_up_s", "computing_s", "waiting_s")}
        total = sum(sums.values()) or 1.0
        text = (
            f"Summed over {len(spent)} trainings: start-up {sums['start_up_s']:.1f} s, computing "
            f"{sums['computing_s']:.1f} s ({100 * sums['computing_s'] / total:.0f} %), waiting "
            f"{sums['waiting_s']:.1f} s."
        )
    rows = stage_times(review.run)
    return {
        "stage_rows": [(row["stage"], f"{row['wall_s']:.1f} s", _if_any(row["computing_s"])) for row in rows],
        "time_text": text,
    }


def _if_any(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds else ""
