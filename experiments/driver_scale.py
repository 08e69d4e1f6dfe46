"""The driver's own cost when a search has many trials: python -m experiments.driver_scale

A search of N trials goes through the real TrialController, record and study, on this machine's disk. The trainings
are made up and take no time, so what is measured is the driver's own work: the CPU time of a trial in each tenth of
the search, and the process's memory. With --real N tiny trials are trained by Ray Tune (digits, one epoch, two at a
time), and wall time counts too.
"""

import argparse
import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.publishing import made_up_metrics
from mnist_ray import __version__
from mnist_ray.callbacks import Callback, TrainingInfo, TrainingOutcome
from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.pipeline.early_stopping import SuccessiveHalving
from mnist_ray.pipeline.search import WAITING, SuggestedTrials, TrialController
from mnist_ray.pipeline.tasks import Execution, TrainingTask
from mnist_ray.record.events import RECORD_FORMAT, RunTaken
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter

NUM_EPOCHS = 10
TENTHS = 10


def main() -> None:
    """Measure the searches that were asked for."""
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
    """Call in a fork, so that the peak of its memory is its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))


# --- simulated


def spec_of(folder: Path, name: str, num_trials: int, **search: Any) -> JobSpec:
    return parse_spec(
        {
            "name": name,
            "storage": str(folder),
            "data": {"name": "digits", "num_validation": 180},
            "search": {"num_trials": num_trials, "num_epochs": NUM_EPOCHS, **search},
            "final": None,
        }
    )


def measure_simulated(folder: Path, num_trials: int) -> None:
    """Print the driver's CPU time and memory in a search without trainings."""
    spec = spec_of(folder, f"simulated-{num_trials}", num_trials)
    host, process = socket.gethostname(), this_process()
    taken = RunTaken(format=RECORD_FORMAT, version=__version__, host=host, process=process)
    writer = RunWriter(RunDir(folder / spec.name), taken)
    controller = TrialController(spec, writer, SuggestedTrials(spec, []), SuccessiveHalving(spec, 1257), 1)
    creating, recording, num_epochs = [], [], 0
    began = time.process_time()
    while (task := controller.next_task()) is not None:
        if task is WAITING:
            continue
        created = time.process_time()
        num_epochs += report_epochs(controller, task)
        creating.append(created - began)
        began = time.process_time()
        recording.append(began - created)
    writer.close()
    print(f"{num_trials:,} trials, {num_epochs:,} epochs; CPU ms of the driver for a trial, by tenths of the search")
    print(f"  suggesting and creating it:       {by_tenths(creating)}")
    print(f"  recording its epochs and its end: {by_tenths(recording)}")
    print(f"  in all {sum(creating) + sum(recording):.1f} s; memory at most {peak_mb():.0f} MB", flush=True)


def report_epochs(controller: TrialController, task: TrainingTask) -> int:
    """Report a trial's epochs, until early stopping ends the trial; return their number."""
    for epoch in range(1, NUM_EPOCHS + 1):
        if not controller.on_epoch(task.id, made_up_metrics(task.config, epoch, elapsed_s=1.0)):
            break
    controller.on_end(task.id, Execution(1, 1, "cpu", num_failures=0))
    controller.poll()
    return epoch


def by_tenths(seconds: list[float]) -> str:
    size = len(seconds) // TENTHS
    tenths = [statistics.mean(seconds[start : start + size]) for start in range(0, size * TENTHS, size)]
    return " ".join(f"{1e3 * tenth:6.2f}" for tenth in tenths)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- real


class Clock(Callback):
    """Notes when each trial ended, by the wall clock and by the driver's CPU time."""

    def __init__(self) -> None:
        self.wall = [time.perf_counter()]
        self.cpu = [time.process_time()]

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def measure_real(folder: Path, num_trials: int) -> None:
    """Print the times of a search by Ray Tune."""
    from mnist_ray import RayBackend, search_job

    clock = Clock()
    spec = spec_of(folder, "real", num_trials, early_stopping=None, max_concurrent_trials=2, num_epochs=1)
    search_job(spec, RayBackend("local", folder / "ray"), [clock], progress=False)
    print(f"{num_trials:,} real trials of one epoch, two at a time; ms for a trial, by tenths of the search")
    print(f"  wall time:                {by_tenths(differences(clock.wall)[2:])}")
    print(f"  CPU time of the driver:   {by_tenths(differences(clock.cpu)[2:])}")
    print(f"  memory of the driver at most {peak_mb():.0f} MB")


def differences(values: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


if __name__ == "__main__":
    main()
