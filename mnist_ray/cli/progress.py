"""What a person sees while a run goes on: one bar a stage on a terminal, plain lines anywhere else."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mnist_ray.pipeline.stages import Listener
from mnist_ray.record.rundir import Training

LINE_EVERY_S = 10.0


class Display(Listener):
    """A listener that draws. Use it as a context; nothing is drawn after the end."""

    def __init__(self, objective: str) -> None:
        self._objective = objective
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._stage = ""
        self._bar: Any = None
        self._best: tuple[float, str] | None = None
        self._last_line = float("-inf")

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    def stage_began(self, stage: str, total: int, done: int, unit: str) -> None:
        self._stage = stage
        self._bar = self._bars.add_task(stage, total=total, completed=done, unit=unit, what="")
        self._line(f"0 of {total} {unit}" if not done else f"{done} of {total} {unit} were done before", now=True)

    def stage_ended(self, stage: str, elapsed_s: float) -> None:
        self._stage = stage
        self._line(f"done in {elapsed_s:.1f} s", now=True)

    def trial_epoch(self, training_id: str, row: dict[str, Any]) -> None:
        self._what(
            f"{training_id} epoch {row['epoch']} {self._objective} {row[self._objective]:.4f}{self._best_so_far()}"
        )

    def trial_ended(self, training: Training) -> None:
        if training.status == "complete" and training.stage == "search":
            self._keep_best(training)
        score = f" {self._objective} {training.history[-1][self._objective]:.4f}" if training.history else ""
        reason = (training.ended or {}).get("reason")
        self._bars.advance(self._bar)
        self._what(
            f"{training.id} {training.status} after {training.epochs_done} epochs{score}"
            + (f" ({reason})" if reason else "")
            + (self._best_so_far() if training.stage == "search" else ""),
            now=True,
        )

    def retraining_epoch(self, training_id: str, role: str, row: dict[str, Any], num_epochs: int) -> None:
        self._bars.advance(self._bar)
        seconds = f"{row['elapsed_s']:.1f} s"
        what = (
            f"{role} ({training_id}) epoch {row['epoch']} of {num_epochs} train_loss {row['train_loss']:.4f} {seconds}"
        )
        self._what(what, now=row["epoch"] == num_epochs)

    def _keep_best(self, training: Training) -> None:
        score = training.history[-1][self._objective]
        sign = -1 if self._objective == "val_accuracy" else 1
        if self._best is None or sign * score < sign * self._best[0]:
            self._best = (score, training.id)

    def _best_so_far(self) -> str:
        return f", best so far {self._best[0]:.4f} ({self._best[1]})" if self._best else ""

    def _what(self, text: str, now: bool = False) -> None:
        """On a terminal beside the bar; elsewhere a line, at most one in ten seconds unless it is due `now`."""
        if self._console.is_terminal:
            self._bars.update(self._bar, what=text)
        else:
            self._line(text, now)

    def _line(self, text: str, now: bool) -> None:
        if self._console.is_terminal:
            return
        if now or time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print(f"{time.strftime('%H:%M:%S')} {self._stage}: {text}", markup=False)
