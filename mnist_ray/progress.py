"""The display of a run in progress: bars on a terminal, one output in a notebook, plain lines anywhere else."""

import logging
import sys
import time
from typing import Protocol, TextIO, cast

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
from mnist_ray.config import Objective
from mnist_ray.metrics import EpochMetrics
from mnist_ray.output import GuardedStream
from mnist_ray.shown import shown

LINE_EVERY_S = 10.0  # between two lines about epochs, without a terminal
UPDATE_EVERY_S = 0.5  # between two updates of a notebook's output


class ProgressDisplay(Callback):
    """A callback that draws on standard error or in a notebook, where it also shows the package's log messages.

    Use it as a context; nothing is drawn after the end.
    """

    def __init__(self, objective: Objective, quiet: bool = False, console: Console | None = None) -> None:
        """quiet: show warnings and errors alone. console: without it standard error, or the notebook's cell."""
        self._objective = objective
        self._is_quiet = quiet
        self._surface = _surface(console or _standard_error(), quiet)
        self._messages = _MessageHandler(self._surface)
        self._level_before = logging.NOTSET
        self._stage: StageName = "data"
        self._best: tuple[float, str] | None = None  # the objective, and the trial that has it
        self._num_images_read = 0

    def __enter__(self) -> "ProgressDisplay":
        logger = logging.getLogger("mnist_ray")
        self._level_before = logger.level
        logger.setLevel(logging.WARNING if self._is_quiet else logging.INFO)
        logger.addHandler(self._messages)
        self._surface.start()
        self._surface.print("starting: reading and checking the data")
        return self

    def __exit__(self, *error: object) -> None:
        self._surface.stop()
        logger = logging.getLogger("mnist_ray")
        logger.removeHandler(self._messages)
        logger.setLevel(self._level_before)

    def on_stage_start(self, stage: StageName, total: int, done: int, unit: str) -> None:
        self._stage = stage
        self._surface.begin(stage, total, done, unit)

    def on_earlier_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        self._take_score(training, outcome)

    def on_stage_end(self, stage: StageName, elapsed_s: float) -> None:
        self._stage = stage
        self._surface.print(f"{stage}: done in {elapsed_s:.1f} s")

    def on_images_read(self, num_read: int) -> None:
        self._surface.advance(num_read - self._num_images_read)
        self._num_images_read = num_read
        self._surface.show(self._stage, f"{num_read:,} images read")

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        if training.stage == "retrain":
            self._surface.advance()
            num_epochs = training.config.num_epochs
            text = (
                f"{training.label or training.id}: epoch {metrics.epoch} of {num_epochs} "
                f"train_loss {metrics.train.loss:.4f} {metrics.elapsed_s:.1f} s"
            )
            if metrics.epoch == num_epochs:
                self._surface.print_training(f"{self._stage}: {text}")
            else:
                self._surface.show(self._stage, text)
        else:
            objective = metrics.objective(self._objective)
            best = self._best_so_far()
            self._surface.show(
                self._stage,
                f"{training.label or training.id} epoch {metrics.epoch} {self._objective} {objective:.4f}{best}",
            )

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        if training.stage == "retrain":
            return
        score = self._take_score(training, outcome)
        self._surface.advance()
        self._surface.print_training(
            f"{self._stage}: {training.label or training.id} {outcome.status} after {outcome.epochs_done} epochs"
            + (f" {self._objective} {score:.4f}" if score is not None else "")
            + (f" ({outcome.reason})" if outcome.reason else "")
            + (self._best_so_far() if training.stage == "search" else "")
        )

    def _take_score(self, training: TrainingInfo, outcome: TrainingOutcome) -> float | None:
        """Return a training's score, and remember that of the search's best complete trial."""
        score = outcome.last.objective(self._objective) if outcome.last else None
        if outcome.status == "complete" and training.stage == "search" and score is not None:
            sign = -1 if self._objective == "val_accuracy" else 1
            if self._best is None or sign * score < sign * self._best[0]:
                self._best = (score, training.id)
        return score

    def _best_so_far(self) -> str:
        return f", best so far {self._best[0]:.4f} ({self._best[1]})" if self._best else ""


class _MessageHandler(logging.Handler):
    """Shows log messages as they are, without control characters."""

    def __init__(self, surface: "_Surface") -> None:
        super().__init__(logging.INFO)
        self._surface = surface

    def emit(self, record: logging.LogRecord) -> None:
        self._surface.print_message(shown(self.format(record)))


# --- surfaces ----------------------------------------------------------------------------------------------------


class _Surface(Protocol):
    """A place where a run's progress is shown."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def begin(self, stage: str, total: int, done: int, unit: str) -> None:
        """Show a stage of `total` units, `done` of them done before."""

    def advance(self, num_units: int = 1) -> None:
        """Show that more units of the stage are done."""

    def show(self, stage: str, text: str) -> None:
        """Show a text until the next one."""

    def print(self, text: str) -> None:
        """Show a line about the run that stays."""

    def print_training(self, text: str) -> None:
        """Show a line about the end of a training, which stays where there is room for many."""

    def print_message(self, text: str) -> None:
        """Show a log message."""


def _surface(console: Console, quiet: bool) -> _Surface:
    if quiet:
        return _Lines(console, quiet=True)
    if console.is_jupyter:
        return _NotebookOutput()
    return _Bars(console) if console.is_terminal else _Lines(console)


def _standard_error() -> Console:
    return Console(file=cast(TextIO, GuardedStream(sys.stderr)), highlight=False, soft_wrap=True)


class _Lines:
    """Lines with the time, of which those about epochs come at most every LINE_EVERY_S."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        """quiet: print messages alone."""
        self._console = console
        self._is_quiet = quiet
        self._last_line_at = float("-inf")

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def begin(self, stage: str, total: int, done: int, unit: str) -> None:
        begun = f"0 of {total} {unit}" if not done else f"{done} of {total} {unit} were done before"
        self.print(f"{stage}: {begun}")

    def advance(self, num_units: int = 1) -> None: ...

    def show(self, stage: str, text: str) -> None:
        if time.monotonic() - self._last_line_at >= LINE_EVERY_S:
            self.print(f"{stage}: {text}")

    def print(self, text: str) -> None:
        if not self._is_quiet:
            self._last_line_at = time.monotonic()
            self._console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False)

    def print_training(self, text: str) -> None:
        self.print(text)

    def print_message(self, text: str) -> None:
        self._console.print(text, markup=False)


class _Bars(_Lines):
    """Bars at the foot of a terminal, one a stage, below the lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description:<7}", table_column=Column(no_wrap=True, min_width=7)),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
            TextColumn("{task.fields[unit]}", table_column=Column(no_wrap=True, min_width=6)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            expand=True,
        )
        self._bar: TaskID | None = None

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    def begin(self, stage: str, total: int, done: int, unit: str) -> None:
        self._bar = self._bars.add_task(stage, total=total, completed=done, unit=unit, text="")

    def advance(self, num_units: int = 1) -> None:
        if self._bar is not None:
            self._bars.advance(self._bar, num_units)

    def show(self, stage: str, text: str) -> None:
        if self._bar is not None:
            self._bars.update(self._bar, text=text)


class _NotebookOutput:
    """One output of a notebook's cell, replaced as the run goes on: a line a stage, a message or the latest training.

    rich's own display needs ipywidgets there, and keeps no trace of a run in the saved notebook.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []  # that stay
        self._count = ""
        self._done = 0
        self._total = 0
        self._unit = ""
        self._stage = ""
        self._latest = ""
        self._updated_at = float("-inf")

    def start(self) -> None:
        from IPython.display import display

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        self._stage = self._latest = ""
        self._update()

    def begin(self, stage: str, total: int, done: int, unit: str) -> None:
        self._stage, self._total, self._done, self._unit, self._latest = stage, total, done, unit, ""
        self._update()

    def advance(self, num_units: int = 1) -> None:
        self._done += num_units

    def show(self, stage: str, text: str) -> None:
        self._latest = text
        if time.monotonic() - self._updated_at >= UPDATE_EVERY_S:
            self._update()

    def print(self, text: str) -> None:
        self._lines.append(text)
        self._stage = self._latest = ""
        self._update()

    def print_training(self, text: str) -> None:
        self.show(self._stage, text)

    def print_message(self, text: str) -> None:
        self._lines.append(text)
        self._update()

    def _update(self) -> None:
        now = [f"{self._stage}: {self._done} of {self._total} {self._unit}"] if self._stage else []
        latest = [f"  {self._latest}"] if self._latest else []
        self._updated_at = time.monotonic()
        self._handle.update({"text/plain": "\n".join([*self._lines, *now, *latest])}, raw=True)
