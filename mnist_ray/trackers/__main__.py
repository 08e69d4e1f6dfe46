"""The process of one tracker: `python -m mnist_ray.trackers TRACKER FOLDER`.

A line on its standard input, or the end of that, is the end of the run's session. Each line of its standard output is
a warning.
"""

import os
import select
import signal
import sys
from typing import cast, get_args

from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import storage_path
from mnist_ray.trackers.addresses import mlflow_address, name_of
from mnist_ray.trackers.follower import REST, RETRY_S, End, Tracker, follow


def main(entry: str, folder: str) -> None:
    """Follow the run in a folder until its session ends."""
    os.nice(5)  # trainings come first; with 19 a tracker would not even start beside them
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the run, whose end is announced here
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as warnings:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # MLflow prints the address of each run

        def warn(reason: str) -> None:
            retry = f"tried again every {RETRY_S:.0f} s"
            print(f"{name_of(entry)} does not take the run ({reason}); {retry}; {REST}", file=warnings, flush=True)

        follow(RunDir(storage_path(folder)), lambda run: _tracker(entry, run), _wait_for_end, warn)


def _tracker(entry: str, run: RunDir) -> Tracker:
    match name_of(entry):
        case "tensorboard":
            from mnist_ray.trackers.tensorboard import TensorBoardTracker

            return TensorBoardTracker(run)
        case "optuna":
            from mnist_ray.trackers.optuna import OptunaTracker

            return OptunaTracker(run)
    from mnist_ray.trackers.mlflow import MlflowTracker

    return MlflowTracker(run, mlflow_address(entry, run.paths))


def _wait_for_end(timeout_s: float) -> End | None:
    readable, _, _ = select.select([sys.stdin], [], [], timeout_s)
    if not readable:
        return None
    end = sys.stdin.readline().strip()  # empty where the process of the run is gone
    return cast(End, end) if end in get_args(End) else "stopped"


if __name__ == "__main__":
    main(*sys.argv[1:])
