"""A recorded trial, trained again: whether it comes to the same numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mnist_ray import __version__
from mnist_ray.errors import SpecError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.execution import tensors_of
from mnist_ray.pipeline.provenance import installed_versions, processor, source_sha256
from mnist_ray.pipeline.stages import LoadedData
from mnist_ray.record.events import SessionStarted
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import Training
from mnist_ray.training.loop import DivergedError, TrainState, fit
from mnist_ray.training.process import prepare_to_train

CPU = torch.device("cpu")

# Elsewhere sums are rounded in another order, and training makes more of it with each step. Relative to the loss.
LOSS_TOLERANCE = 0.1
ACCURACY_TOLERANCE = 0.01


@dataclass(frozen=True)
class Replay:
    """The result of a replay."""

    training_id: str
    is_same_environment: bool  # processor, threads, versions and code are those of the record, so numbers must be equal
    differing_environment: list[str]  # what is not
    num_epochs: int
    differences: list[str]  # epochs whose numbers differ, a line each
    beyond_tolerance: list[str]  # of those, the ones that differ by more than LOSS_TOLERANCE or ACCURACY_TOLERANCE

    @property
    def is_good(self) -> bool:
        return not (self.differences if self.is_same_environment else self.beyond_tolerance)

    def __str__(self) -> str:
        environment = (
            "the same processor, threads, versions and code"
            if self.is_same_environment
            else "; ".join(self.differing_environment)
        )
        if not self.differences:
            return f"{self.training_id}: the same numbers, bit for bit, in {self.num_epochs} epochs ({environment})"
        if self.is_good:
            return (
                f"{self.training_id}: within tolerance in {self.num_epochs} epochs, not the same bits (loss within "
                f"{100 * LOSS_TOLERANCE:.0f} %, accuracy within {100 * ACCURACY_TOLERANCE:.0f} points): {environment}"
            )
        lines = self.differences if self.is_same_environment else self.beyond_tolerance
        return "\n".join(
            [f"{self.training_id}: NOT the same numbers ({environment})", *(f"  {line}" for line in lines)]
        )


def replay_trial(run: RunDir, number: int, data_dir: Path | None, on_epoch: Callable[[EpochMetrics], None]) -> Replay:
    """Train a recorded trial again as far as its record goes, in this process, without Ray.

    on_epoch: called after each epoch. Raises SpecError for a trial that is not there or has no epochs, DataError.
    """
    training = _recorded(run, number)
    started = run.state.started
    assert started is not None
    spec = started.spec
    folder = str(data_dir) if data_dir else spec.data.dir
    loaded = LoadedData(spec.model_copy(update={"data": spec.data.model_copy(update={"dir": folder})}))
    if loaded.facts != started.data:
        raise SpecError(f"data.name {spec.data.name}: the data in {loaded.folder} differ from those of {run}")
    prepare_to_train(training.ended.threads if training.ended else spec.search.cpus_per_trial)
    state = TrainState.initial(training.config, loaded.split.statistics, num_classes=loaded.split.num_classes)
    epochs: list[EpochMetrics] = []
    try:
        for metrics in fit(state, tensors_of(loaded.split, CPU), training.config):
            epochs.append(metrics)
            on_epoch(metrics)
            if len(epochs) == training.epochs_done:
                break
    except DivergedError:
        pass  # the comparison says how many epochs there are
    return _compared(training, epochs, _differing_environment(started, training))


def _recorded(run: RunDir, number: int) -> Training:
    training = run.state.training(f"trial-{number:04d}")
    trials = run.state.trainings("search")
    if training is None:
        known = f"0 to {len(trials) - 1}" if trials else "none"
        raise SpecError(f"--trial {number}: {run} has no such trial (there: {known})")
    if not training.history:
        raise SpecError(f"--trial {number}: {training.id} of {run} has no recorded epoch: choose another")
    return training


def _differing_environment(started: SessionStarted, training: Training) -> list[str]:
    versions = {"mnist_ray": __version__, **installed_versions()}
    differing = [
        f"{name} {versions[name]} here, {number} there"
        for name, number in started.versions.items()
        if name in ("mnist_ray", "torch", "numpy") and versions[name] != number
    ]
    there = started.cluster.processors
    if there != (processor(),):
        differing.append(f"processor {processor()} here, {'; '.join(there) or 'not recorded'} there")
    if training.ended and training.ended.device != "cpu":
        differing.append("CPU here, GPU there")
    if started.provenance.source_sha256 != source_sha256():
        differing.append("another state of the code")
    return differing


def _compared(training: Training, epochs: list[EpochMetrics], differing_environment: list[str]) -> Replay:
    differences, beyond = [], []
    for recorded, replayed in zip(training.history, epochs, strict=False):
        there, here = recorded.columns(), replayed.columns()
        names = [name for name in here if name not in ("epoch", "elapsed_s") and here[name] != there.get(name)]
        if names:
            values = ", ".join(f"{name} {here[name]!r} here, {there.get(name)!r} there" for name in names)
            line = f"epoch {replayed.epoch}: {values}"
            differences.append(line)
            if any(_is_beyond(name, here[name], there.get(name)) for name in names):
                beyond.append(line)
    if len(epochs) < training.epochs_done:
        line = f"only {len(epochs)} of {training.epochs_done} epochs: it diverged here"
        differences.append(line)
        beyond.append(line)
    return Replay(training.id, not differing_environment, differing_environment, len(epochs), differences, beyond)


def _is_beyond(name: str, here: float, there: float | None) -> bool:
    if there is None:
        return True
    if name.endswith("_loss"):
        return abs(here - there) > LOSS_TOLERANCE * max(abs(there), 0.01)
    return name.endswith("_accuracy") and abs(here - there) > ACCURACY_TOLERANCE
