"""The loop of a tracker's process: look at the record, log what is new, try again later where that fails."""

import re
from collections.abc import Callable
from typing import Literal, Protocol

from mnist_ray.metrics import EpochMetrics
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState, Training

LOOK_S = 1.0
RETRY_S = 30.0
REST = "the run is as it would be without; the same command logs the rest"

End = Literal["complete", "stopped", "failed"]  # of a session of the run; stopped: it is to be resumed


class Tracker(Protocol):
    """A place to which a run is logged."""

    def update(self, state: RunState, end: End | None) -> None:
        """Log what is on record and not logged yet. end: of the session; None while it goes on.

        Raises whatever its files or its server come up with; a new tracker is made then.
        """


def follow(
    run: RunDir,
    make: Callable[[RunDir], Tracker],
    wait_for_end: Callable[[float], End | None],
    warn: Callable[[str], object],
) -> None:
    """Log a run until its session ends.

    make: opens the tracker, which finds out what was logged before. wait_for_end: waits for so many seconds at most.
    """
    tracker, pause_s, end = None, 0.0, None
    while end is None:
        end = wait_for_end(pause_s)
        try:
            run.catch_up()
            pause_s = LOOK_S
            if run.state.started is not None:
                tracker = tracker or make(run)
                tracker.update(run.state, end)
        except Exception as error:
            tracker, pause_s = None, RETRY_S
            warn(_in_one_line(error))


def _in_one_line(error: Exception) -> str:
    """Describe an error briefly, without the user name and the password that an address in it may hold."""
    text = re.sub(r"//[^/\s@]*@", "//", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text:.300}"


def scalars(metrics: EpochMetrics) -> dict[str, float]:
    """Return what is drawn of an epoch: losses and accuracies."""
    return {name: value for name, value in metrics.columns().items() if name.endswith(("_loss", "_accuracy"))}


def parameters(training: Training) -> dict[str, str | int | float]:
    """Return the values by which trainings are told apart."""
    return {"stage": training.stage, **training.config.model_dump()}
