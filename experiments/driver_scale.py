"""What does the driver itself cost when a search has many trials? python -m experiments.driver_scale

A search of N trials through the real ledger, record and study, on this machine's disk; Ray's part is played by a plain
loop and the epochs are made up, so what is measured is the driver's own work: the CPU time of a trial in each tenth of
the search, and the process's memory. With --real N tiny trials are trained by Ray Tune (digits, one epoch, two at a
time), and wall time counts too.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler

from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.pipeline.job import Site, search_job
from mnist_ray.pipeline.stages import Listener
from mnist_ray.ray_backend.heartbeat import TrialWatch
from mnist_ray.ray_backend.tune import search as tuning
from mnist_ray.record.rundir import RunDir, Training

NUM_EPOCHS = 10
TENTHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000], help="of simulated searches")
    parser.add_argument("--real", type=int, help="a search by Ray Tune of so many trials instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        if arguments.real:
            measure_real(Path(folder), arguments.real)
            return
        for num_trials in arguments.trials:
            in_a_process_of_its_own(partial(measure_simulated, Path(folder), num_trials))


def in_a_process_of_its_own(call: Callable[[], None]) -> None:
    """So that the peak of its memory is its own."""
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


# --- simulated


@dataclass
class MadeUpTrial:
    """As much of a Tune trial as the ledger and early stopping look at."""

    config: dict[str, Any]
    num_failures: int = 0
    last_result: dict[str, Any] = field(default_factory=dict)

    @property
    def trial_id(self) -> str:
        return str(self.config["training_id"])

    __hash__ = object.__hash__


class NobodyHangs(TrialWatch):
    def end_hanging(self, in_flight: Collection[str]) -> dict[str, str]:
        return {}


def spec_of(folder: Path, name: str, num_trials: int, **search: Any) -> JobSpec:
    return parse_spec(
        {
            "name": name,
            "storage": str(folder),
            "data": {"name": "digits", "num_validation": 180},
            "search": {"num_trials": num_trials, "num_epochs": NUM_EPOCHS, **search},
            "confirm": None,
        }
    )


def measure_simulated(folder: Path, num_trials: int) -> None:
    spec = spec_of(folder, f"simulated-{num_trials}", num_trials)
    run = RunDir(folder / spec.name)
    run.take({})
    suggested, stopping = tuning._Suggested(spec, []), tuning.RecordedASHA(spec.search)
    ledger: Any = tuning._Ledger(spec, run, Listener(), None, suggested, stopping, NobodyHangs())
    asking, recording, num_epochs = [], [], 0
    while True:
        began = time.process_time()
        values = ledger.next_trial()
        asked = time.process_time()
        if values is None:
            break
        num_epochs += report_epochs(ledger, MadeUpTrial(values))
        asking.append(asked - began)
        recording.append(time.process_time() - asked)
    print(f"{num_trials:,} trials, {num_epochs:,} epochs; CPU ms of the driver for a trial, by tenths of the search")
    print(f"  suggesting and recording it:     {by_tenths(asking)}")
    print(f"  recording its epochs and its end: {by_tenths(recording)}")
    print(f"  in all {sum(asking) + sum(recording):.1f} s; memory at most {peak_mb():.0f} MB", flush=True)


def report_epochs(ledger: Any, trial: MadeUpTrial) -> int:
    """The epochs of a trial whose loss depends on its learning rate, until early stopping ends it."""
    ledger.scheduler.on_trial_add(None, trial)
    for epoch in range(1, NUM_EPOCHS + 1):
        loss = abs(trial.config["config"]["learning_rate"] - 0.002) * 100 + 1 / epoch
        scores = {"loss": loss, "accuracy": 0.9, "correct": 4500, "examples": 5000}
        row = {"epoch": epoch, "elapsed_s": 1.0} | {
            f"{part}_{key}": scores[key] for part in ("train", "val") for key in scores
        }
        action = ledger.scheduler.on_trial_result(None, trial, row)
        trial.last_result = row
        ledger.on_trial_result(0, [], trial, row)
        if action == TrialScheduler.STOP:
            break
    ledger.on_trial_complete(0, [], trial)
    ledger.on_step_end(0, [])
    return epoch


def by_tenths(seconds: list[float]) -> str:
    size = len(seconds) // TENTHS
    tenths = [statistics.mean(seconds[start : start + size]) for start in range(0, size * TENTHS, size)]
    return " ".join(f"{1e3 * tenth:6.2f}" for tenth in tenths)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- real


class Clock(Listener):
    """When each trial ended, by the wall clock and by the driver's CPU time."""

    def __init__(self) -> None:
        self.wall = [time.perf_counter()]
        self.cpu = [time.process_time()]

    def trial_ended(self, training: Training) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def measure_real(folder: Path, num_trials: int) -> None:
    clock = Clock()
    spec = spec_of(folder, "real", num_trials, early_stopping=None, max_concurrent_trials=2)
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"num_epochs": 1})})
    search_job(spec, Site("local", folder / "ray"), clock)
    print(f"{num_trials:,} real trials of one epoch, two at a time; ms for a trial, by tenths of the search")
    print(f"  wall time:                {by_tenths(differences(clock.wall)[2:])}")
    print(f"  CPU time of the driver:   {by_tenths(differences(clock.cpu)[2:])}")
    print(f"  memory of the driver at most {peak_mb():.0f} MB")


def differences(values: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


if __name__ == "__main__":
    main()
