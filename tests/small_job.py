"""A whole job in one process and about a second: the local backend on few images.

Processes are forked from one that has imported everything, so that hundreds of them can be killed in a minute.
The same kills with real Ray: `make chaos`.
"""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_ray import JobSpec, LocalBackend, RunDir, data, parse_spec, run_job
from mnist_ray.callbacks import Callback, TrainingInfo, TrainingOutcome
from mnist_ray.config import Stage, TrainingConfig
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline import search, stages
from mnist_ray.record.events import ClusterFacts, DataFacts, Provenance, SessionStarted
from mnist_ray.record.exports import write_exports
from mnist_ray.record.lease import owned
from mnist_ray.storage.files import FAILPOINT, StoragePath
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from mnist_ray.training.loop import TrainState

NUM_IMAGES = 90
STAGES: tuple[Stage, ...] = ("search", "final", "retrain")


def small_spec(storage: StoragePath | str, **changes: Any) -> JobSpec:
    """Return a spec of three trials, two trainings in the final round and two retrainings, of two epochs each.

    changes: search__num_trials=5 changes a key of a part, final=None a whole part.
    """
    content: dict[str, Any] = {
        "name": "small",
        "storage": str(storage),
        "data": {"name": "digits", "num_validation": 30},
        "recipe": {"learning_rate": 0.0003},  # a poor one, so that there are two retrainings
        "search": {
            "num_trials": 3,
            "num_epochs": 2,
            "early_stopping": {"grace_epochs": 1, "reduction_factor": 2},
            "max_concurrent_trials": 1,
            "space": {
                "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
                "dropout": {"low": 0, "high": 0.5},
            },
        },
        "final": {"top_k": 1, "seeds": 1, "keep_recipe_within_se": 0},
        "retrain": {"num_epochs": 2, "workers": 1},
    }
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (content.setdefault(part, {}) if part else content)[name] = value
    return parse_spec(content)


def use_few_images(patch: pytest.MonkeyPatch) -> None:
    """Put a few digits in the place of every data set."""
    whole, test = (read("digits", Path()) for read in (data.load_training, data.load_test))
    few = np.arange(NUM_IMAGES)
    patch.setattr(data.opened, "load_training", lambda name, folder: whole.take(few))
    patch.setattr(data.opened, "load_test", lambda name, folder: test.take(few))


def save_every_epoch(patch: pytest.MonkeyPatch) -> None:
    """Save a checkpoint after each epoch, however short an epoch is."""

    def save(checkpoints: Checkpoints, state: TrainState, num_workers: int = 1) -> None:
        checkpoints.save(SavedState.of(state, num_workers))

    patch.setattr(Checkpoints, "save_if_due", save)


class Interrupting(Callback):
    """Interrupts the run, as Ctrl-C does, once so many epochs of a stage are published."""

    def __init__(self, stage: Stage, num_epochs: int) -> None:
        self._stage = stage
        self._epochs_left = num_epochs

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        self._epochs_left -= training.stage == self._stage
        if self._epochs_left == 0:
            self._epochs_left = -1
            raise KeyboardInterrupt


class Blocking(Callback):
    """Puts a file where a training wants a folder, once the run has begun."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_stage_start(self, stage: str, total: int, done: int, unit: str) -> None:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("a file where the training wants a folder")


class Remembering(Callback):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.epochs: list[tuple[TrainingInfo, EpochMetrics]] = []
        self.ends: list[tuple[TrainingInfo, TrainingOutcome]] = []
        self.stages: list[str] = []

    def on_stage_start(self, stage: str, total: int, done: int, unit: str) -> None:
        self.stages.append(f"{stage}: {done} of {total} {unit}")

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        self.epochs.append((training, metrics))

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        self.ends.append((training, outcome))


class TimeUp(Callback):
    """Moves the search's clock an hour ahead once two trials have ended, however slow the machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._num_ended = 0
        for module in (search, stages):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self._monotonic))

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        self._num_ended += 1

    def _monotonic(self) -> float:
        return time.monotonic() + (3600.0 if self._num_ended >= 2 else 0.0)


# --- forks -------------------------------------------------------------------------------------------------------


def warm_up(folder: Path) -> None:
    """Import everything that a job imports late, so that forked processes need not.

    Nothing is trained, because torch refuses to be forked after it has trained.
    """
    spec = small_spec(folder)
    TrainState.initial(TrainingConfig(num_epochs=1), data.PixelStatistics(0.1, 0.3))
    run = RunDir(folder / "warm")
    with owned(run, when_lost=lambda: None) as writer:
        writer.publish(
            SessionStarted(
                spec=spec,
                data=DataFacts("", "", NUM_IMAGES),
                versions={},
                cluster=ClusterFacts("local", 1, 0),
                provenance=Provenance("", None, None, ""),
                data_s=0.0,
            )
        )
    write_exports(run.path)


def in_a_fork(call: Callable[[], object]) -> int:
    """Call in a child and return its exit code: negative for the signal that killed it, 1 where it raised."""
    return in_forks(call)[0]


def in_forks(*calls: Callable[[], object]) -> list[int]:
    """Call all at once, each in a child of its own."""
    children = [_fork(call) for call in calls]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(call: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def run_in_a_fork(spec: JobSpec, failpoint: str = "") -> int:
    """Run a job in a child, which is killed at the failpoint, and return its exit code."""

    def call() -> None:
        os.environ[FAILPOINT] = failpoint
        run_job(spec, LocalBackend())

    return in_a_fork(call)


# --- comparing ---------------------------------------------------------------------------------------------------


def essence(path: StoragePath) -> dict[str, Any]:
    """Return everything on record that must not depend on kills: all but times, sessions and machines."""
    state = RunDir(path).state
    trainings = {
        training.id: {
            "config": training.config,
            "status": training.status,
            "history": [timeless(metrics) for metrics in training.history],
            "model": training.ended and training.ended.model,  # its SHA-256
        }
        for stage in STAGES
        for training in state.trainings(stage)
    }
    selected, tested = state.selected, state.tested
    return {
        "trainings": trainings,
        "selected": selected and (selected.training, selected.hyperparameters, selected.score, selected.final),
        "tested": tested and tested.scores,
    }


def timeless(metrics: EpochMetrics) -> EpochMetrics:
    return replace(metrics, elapsed_s=0.0)
