"""Trainings side by side, one to a process, written to a CSV file as they end. Used by the studies of this folder.

A training set is split once: the study's training images, and images held back from them, by which the trainings are
judged. The test split is not read.
"""

import csv
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mnist_ray import data
from mnist_ray.config import DataSetName, TrainingConfig
from mnist_ray.metrics import EpochMetrics
from mnist_ray.training.distributed import Worker
from mnist_ray.training.evaluation import evaluate
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import DivergedError, TrainState, fit
from mnist_ray.training.process import prepare_to_train

Row = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """One training of a study."""

    part: str  # of the study: the trainings that are compared with one another
    config: TrainingConfig
    scored_after: tuple[int, ...] = ()  # epochs, besides the last one: scoring costs more than a small epoch


@dataclass(frozen=True)
class Images:
    """The images that the trainings of a study see."""

    folder: Path  # that the data set lies in
    num_train: int
    num_held_back: int
    data_set: DataSetName = "mnist"

    def on(self, device: torch.device) -> TrainingData:
        """Return the images as tensors: stratified, the same ones in every process."""
        examples = data.load_training(self.data_set, self.folder)
        split = data.stratified_split(examples.labels, self.num_held_back, seed=0)
        learnt = examples.take(np.sort(np.random.default_rng(0).permutation(split.train)[: self.num_train]))
        parts = (learnt, examples.take(split.validation))
        train, held_back = (Examples.of(part, device) for part in parts)
        return TrainingData(train, held_back, data.pixel_statistics(learnt.images))


def run_all(plans: Sequence[Planned], images: Images, table: Path, processes: int, device: str = "cpu") -> pd.DataFrame:
    """Do the trainings that `table` does not hold yet and return its rows, one for each epoch that is scored.

    A training is written when it has ended, so that a study that was interrupted goes on.
    """
    data.fetch(images.data_set, images.folder)
    known = {_key(row) for row in _rows(table)}
    open_plans = [plan for plan in plans if _key(_identity(plan)) not in known]
    # the longest first, so that no process is left alone with one
    open_plans.sort(key=lambda plan: -plan.config.num_epochs / plan.config.batch_size)
    with multiprocessing.get_context("spawn").Pool(processes, _prepare, (images, device)) as pool:
        for number, rows in enumerate(pool.imap_unordered(_train, open_plans), start=1):
            _append(table, rows)
            last = rows[-1]
            print(
                f"{number} of {len(open_plans)}: {last['part']} seed {last['seed']} epoch {last['epoch']} "
                f"val_loss {last['val_loss']:.4f}",
                flush=True,
            )
    return pd.read_csv(table)


_data: TrainingData
_worker: Worker


def _prepare(images: Images, device: str) -> None:
    global _data, _worker
    prepare_to_train(1)
    _worker = Worker(device=torch.device(device))
    _data = images.on(_worker.device)


def _train(plan: Planned) -> list[Row]:
    state = TrainState.initial(plan.config, _data.statistics, _worker)
    same = {**_identity(plan), "device": _worker.device.type}
    rows: list[Row] = []
    scored = {*plan.scored_after, plan.config.num_epochs}
    try:
        epochs = fit(state, replace(_data, validation=None), plan.config, _worker)
        rows.extend({**same, **_scored(metrics, state).columns()} for metrics in epochs if metrics.epoch in scored)
    except DivergedError:
        rows.append({**same, "epoch": state.completed_epochs + 1, "val_loss": float("nan")})
    return rows


def _scored(metrics: EpochMetrics, state: TrainState) -> EpochMetrics:
    """Return the metrics of the epoch with the scores of the images held back, as a job's trainings have them."""
    assert _data.validation is not None
    raw = None if state.average is None else evaluate(state.model, _data.validation, _worker)
    return replace(metrics, validation=evaluate(state.shipped_model, _data.validation, _worker), raw_validation=raw)


def _identity(plan: Planned) -> Row:
    return {"part": plan.part, **plan.config.model_dump()}


def _key(row: Row) -> tuple[str, ...]:
    """Return what tells trainings apart, as text, because a CSV file knows nothing else."""
    return (row["part"], *(str(row[name]) for name in TrainingConfig.model_fields))


def _rows(table: Path) -> Iterator[Row]:
    if table.exists():
        with table.open(newline="") as file:
            yield from csv.DictReader(file)


COLUMNS = (
    "part",
    *TrainingConfig.model_fields,
    "device",
    "epoch",
    "elapsed_s",
    "train_loss",
    "train_accuracy",
    *(f"{of}_{value}" for of in ("val", "val_raw") for value in ("loss", "accuracy", "correct", "examples")),
)


def _append(table: Path, rows: Sequence[Row]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    is_new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
