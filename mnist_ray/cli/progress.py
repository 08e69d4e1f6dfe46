"""The display of a run in progress: one bar a stage on a terminal, plain lines anywhere else."""

import logging
import sys
import time
from typing import TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from mnist_ray.callbacks import Callback, StageName, TrainingInfo, TrainingOutcome
from mnist_ray.cli.output import GuardedStream
from mnist_ray.config import Objective
from mnist_ray.metrics import EpochMetrics
from mnist_ray.shown import shown

LINE_EVERY_S = 10.0


class ProgressDisplay(Callback):
    """A callback that draws on standard error, where it also shows the package's log messages.

    Use it as a context; nothing is drawn after the end.
    """

    def __init__(self, objective: Objective, quiet: bool = False, console: Console | None = None) -> None:
        """quiet: show warnings and errors alone. console: without it standard error."""
        self._objective = objective
        self._is_quiet = quiet
        self._console = console or Console(
            file=cast(TextIO, GuardedStream(sys.stderr)), highlight=False, soft_wrap=True
        )
        self._bars = Progress(
            TextColumn("{task.description:<7}", table_column=Column(no_wrap=True, min_width=7)),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
            TextColumn("{task.fields[unit]}", table_column=Column(no_wrap=True, min_width=6)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[what]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            expand=True,
        )
        self._stage: StageName = "data"
        self._bar: TaskID | None = None
        self._best: tuple[float, str] | None = None  # the objective, and the trial that has it
        self._last_line_at = float("-inf")
        self._messages = _ConsoleHandler(self._console)
        self._level_before = logging.NOTSET

    def __enter__(self) -> "ProgressDisplay":
        logger = logging.getLogger("mnist_ray")
        self._level_before = logger.level
        logger.setLevel(logging.WARNING if self._is_quiet else logging.INFO)
        logger.addHandler(self._messages)
        self._bars.start()
        self._lasting("starting: the data are read and checked, then Ray starts")
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()
        logger = logging.getLogger("mnist_ray")
        logger.removeHandler(self._messages)
        logger.setLevel(self._level_before)

    def on_stage_start(self, stage: StageName, total: int, done: int, unit: str) -> None:
        self._stage = stage
        self._bar = self._bars.add_task(stage, total=total, completed=done, unit=unit, what="")
        if not self._console.is_terminal:
            begun = f"0 of {total} {unit}" if not done else f"{done} of {total} {unit} were done before"
            self._lasting(f"{stage}: {begun}")

    def on_stage_end(self, stage: StageName, elapsed_s: float) -> None:
        self._stage = stage
        self._lasting(f"{stage}: done in {elapsed_s:.1f} s")

    def on_images_read(self, num_read: int) -> None:
        if self._bar is not None:
            self._bars.update(self._bar, completed=num_read)

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        if training.stage == "retrain":
            self._advance()
            num_epochs = training.config.num_epochs
            text = (
                f"{training.role}, seed {training.config.seed}: epoch {metrics.epoch} of {num_epochs} "
                f"train_loss {metrics.train.loss:.4f} {metrics.elapsed_s:.1f} s"
            )
            if metrics.epoch == num_epochs:
                self._lasting(f"{self._stage}: {text}")
            else:
                self._show(text)
        else:
            objective = metrics.objective(self._objective)
            best = self._best_so_far()
            self._show(f"{training.id} epoch {metrics.epoch} {self._objective} {objective:.4f}{best}")

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        if training.stage == "retrain":
            return
        score = outcome.last.objective(self._objective) if outcome.last else None
        if outcome.status == "complete" and training.stage == "search" and score is not None:
            sign = -1 if self._objective == "val_accuracy" else 1
            if self._best is None or sign * score < sign * self._best[0]:
                self._best = (score, training.id)
        self._advance()
        self._lasting(
            f"{self._stage}: {training.id} {outcome.status} after {outcome.epochs_done} epochs"
            + (f" {self._objective} {score:.4f}" if score is not None else "")
            + (f" ({outcome.reason})" if outcome.reason else "")
            + (self._best_so_far() if training.stage == "search" else "")
        )

    def _best_so_far(self) -> str:
        return f", best so far {self._best[0]:.4f} ({self._best[1]})" if self._best else ""

    def _advance(self) -> None:
        if self._bar is not None:
            self._bars.advance(self._bar)

    def _show(self, text: str) -> None:
        """Show a text beside the bar; without a terminal as a line, at most one in LINE_EVERY_S."""
        if self._console.is_terminal:
            if self._bar is not None:
                self._bars.update(self._bar, what=text)
        elif time.monotonic() - self._last_line_at >= LINE_EVERY_S:
            self._lasting(f"{self._stage}: {text}")

    def _lasting(self, text: str) -> None:
        """Print a line with the time; on a terminal it stays above the bars."""
        if not self._is_quiet:
            self._last_line_at = time.monotonic()
            self._console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False)


class _ConsoleHandler(logging.Handler):
    """Prints log messages above the bars, as they are."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(shown(self.format(record)), markup=False)
