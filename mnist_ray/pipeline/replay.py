"""A trial again, from the record: does it come to the same numbers?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnist_ray import __version__, data
from mnist_ray.config import TrainingConfig, parse_spec
from mnist_ray.errors import SpecError
from mnist_ray.pipeline.provenance import processor, source_sha256
from mnist_ray.ray_backend.cluster import installed_versions
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.training.loop import DivergedError, Examples, TrainingData, TrainState, fit
from mnist_ray.training.process import prepare_to_train

CPU = torch.device("cpu")

# Elsewhere sums are rounded in another order, and training makes more of it with each step. Relative to the loss.
LOSS_TOLERANCE = 0.1
ACCURACY_TOLERANCE = 0.01


@dataclass(frozen=True)
class Replay:
    """What came of it."""

    training_id: str
    is_same_place: bool  # processor, threads, versions and code are those of the record, so numbers must be equal
    differing_place: list[str]  # what is not
    num_epochs: int
    differences: list[str]  # epochs whose numbers differ, a line each
    beyond_tolerance: list[str]  # of those, the ones that differ by more than LOSS_TOLERANCE or ACCURACY_TOLERANCE

    @property
    def is_good(self) -> bool:
        return not (self.differences if self.is_same_place else self.beyond_tolerance)

    def __str__(self) -> str:
        place = (
            "the same processor, threads, versions and code" if self.is_same_place else "; ".join(self.differing_place)
        )
        if not self.differences:
            return f"{self.training_id}: the same numbers, bit for bit, in {self.num_epochs} epochs ({place})"
        if self.is_good:
            return (
                f"{self.training_id}: within tolerance in {self.num_epochs} epochs, not the same bits (loss within "
                f"{100 * LOSS_TOLERANCE:.0f} %, accuracy within {100 * ACCURACY_TOLERANCE:.0f} points): {place}"
            )
        lines = self.differences if self.is_same_place else self.beyond_tolerance
        return "\n".join([f"{self.training_id}: NOT the same numbers ({place})", *(f"  {line}" for line in lines)])


def replay_trial(run: RunDir, number: int, data_dir: Path | None, listen: Callable[[dict[str, Any]], None]) -> Replay:
    """Train a recorded trial again as far as its record goes, in this process, without Ray. listen: gets each row.

    Raises SpecError for a trial that is not there or has no epochs, DataError.
    """
    training = _recorded(run, number)
    started = run.stage("started") or {}
    spec = parse_spec(started["spec"], str(run.path))
    folder = data_dir or data.data_dir_of(spec.data.dir)
    data.fetch(spec.data.name, folder)
    examples = data.load_training(spec.data.name, folder)
    split = data.stratified_split(examples.labels, spec.data.num_validation, spec.seed)
    if (split.sha256, data.content_sha256(examples)) != (
        started["data"]["split_sha256"],
        started["data"]["training_sha256"],
    ):
        raise SpecError(f"data.name {spec.data.name}: the data in {folder} are not those of {run.path}")
    threads = int((training.ended or {}).get("threads", spec.search.cpus_per_trial))
    prepare_to_train(threads)
    train, validation = (examples.take(part) for part in (split.train, split.validation))
    config = TrainingConfig(**training.config)
    statistics = data.pixel_statistics(train.images)
    state = TrainState.initial(config, statistics)
    shared = TrainingData(Examples.of(train, CPU), Examples.of(validation, CPU), statistics)
    rows: list[dict[str, Any]] = []
    try:
        for report in fit(state, shared, config):
            rows.append(report.columns())
            listen(rows[-1])
            if len(rows) == training.epochs_done:
                break
    except DivergedError as error:
        listen({"epoch": len(rows) + 1, "diverged": str(error)})
    return _compared(training, rows, _differing_place(started, training))


def _recorded(run: RunDir, number: int) -> Training:
    training = run.training(f"trial-{number:04d}")
    trials = run.trainings("search")
    if training is None:
        known = f"0 to {len(trials) - 1}" if trials else "none"
        raise SpecError(f"--trial {number}: {run.path} has no such trial (there: {known})")
    if not training.history:
        raise SpecError(f"--trial {number}: {training.id} of {run.path} has no epoch on record: choose another")
    return training


def _differing_place(started: dict[str, Any], training: Training) -> list[str]:
    versions = {"mnist_ray": __version__, **installed_versions()}
    differing = [
        f"{name} {versions[name]} here, {number} there"
        for name, number in started["versions"].items()
        if name in ("mnist_ray", "torch", "numpy") and versions[name] != number
    ]
    there = started["cluster"].get("processors", [])
    if there != [processor()]:
        differing.append(f"processor {processor()} here, {'; '.join(there) or 'not recorded'} there")
    if (training.ended or {}).get("device", "cpu") != "cpu":
        differing.append("CPU here, GPU there")
    if started.get("provenance", {}).get("source_sha256") != source_sha256():
        differing.append("another state of the code")
    return differing


def _compared(training: Training, rows: list[dict[str, Any]], differing_place: list[str]) -> Replay:
    differences, beyond = [], []
    for recorded, row in zip(training.history, rows, strict=False):
        names = [name for name in row if name not in ("epoch", "elapsed_s") and row[name] != recorded.get(name)]
        if names:
            told = ", ".join(f"{name} {row[name]!r} here, {recorded.get(name)!r} there" for name in names)
            line = f"epoch {row['epoch']}: {told}"
            differences.append(line)
            if any(_is_beyond(name, row[name], recorded.get(name)) for name in names):
                beyond.append(line)
    if len(rows) < training.epochs_done:
        line = f"only {len(rows)} of {training.epochs_done} epochs: it diverged here"
        differences.append(line)
        beyond.append(line)
    return Replay(training.id, not differing_place, differing_place, len(rows), differences, beyond)


def _is_beyond(name: str, here: float, there: float | None) -> bool:
    if there is None:
        return True
    if name.endswith("_loss"):
        return abs(here - there) > LOSS_TOLERANCE * max(abs(there), 0.01)
    return name.endswith("_accuracy") and abs(here - there) > ACCURACY_TOLERANCE
