"""The interface of everything that follows a run: the progress display, log lines, trackers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mnist_ray.config import Role, Stage, Status, TrainingConfig
from mnist_ray.metrics import EpochMetrics

logger = logging.getLogger(__name__)

StageName = Literal["data", "search", "final", "retrain", "test"]


@dataclass(frozen=True)
class TrainingInfo:
    """A trial, a training of the final round or a retraining, as far as a callback needs it."""

    id: str
    stage: Stage
    config: TrainingConfig
    role: Role | None = None  # of a retraining
    label: str = ""  # for people, such as "recipe, seed 1 of 2"; of a trial its id


@dataclass(frozen=True)
class TrainingOutcome:
    """The end of a training."""

    status: Status
    reason: str | None  # why the training did not reach its full budget
    epochs_done: int
    last: EpochMetrics | None  # of the last epoch


class Callback:
    """A follower of a run; every method may be left out. Only what is published on the record is reported.

    Methods are called in the process that drives the run. A callback that raises is dropped with a warning, and the
    run goes on.
    """

    def on_stage_start(self, stage: StageName, total: int, done: int, unit: str) -> None:
        """Take the start of a stage: `done` of `total` units were done in earlier sessions."""

    def on_earlier_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        """Take the end of a training in an earlier session; called just after its stage's `on_stage_start`."""

    def on_stage_end(self, stage: StageName, elapsed_s: float) -> None:
        """Take the end of a stage that did something in this session."""

    def on_images_read(self, num_read: int) -> None:
        """Take how many of the user's own images are read, in the stage `data`; any thread may call this."""

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        """Take an epoch of a training."""

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        """Take the end of a training."""


class CallbackList(Callback):
    """Several callbacks as one."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks)

    def on_stage_start(self, stage: StageName, total: int, done: int, unit: str) -> None:
        self._call("on_stage_start", stage, total, done, unit)

    def on_earlier_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        self._call("on_earlier_end", training, outcome)

    def on_stage_end(self, stage: StageName, elapsed_s: float) -> None:
        self._call("on_stage_end", stage, elapsed_s)

    def on_images_read(self, num_read: int) -> None:
        self._call("on_images_read", num_read)

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        self._call("on_epoch", training, metrics)

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        self._call("on_training_end", training, outcome)

    def _call(self, method: str, *arguments: object) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, method)(*arguments)
            except Exception:
                self._callbacks.remove(callback)
                logger.warning(
                    "the callback %s failed in %s and is not called again",
                    type(callback).__name__,
                    method,
                    exc_info=True,
                )
