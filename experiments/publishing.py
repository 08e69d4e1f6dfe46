"""How far does publishing fall behind a busy search? python -m experiments.publishing

The real TrialController and RunWriter are driven by a third backend, of timers: every slot's trial completes an epoch
a second. The run lies on this machine's disk, and every request that would go to a store (a file of the log, the
removal of a trial's checkpoints) takes --request-ms. Measured is the time from an epoch's end to its publication, and
from a trial's end to its successor's start. The goals: 99 % of the epochs are published within 2 s, and the last tenth
of them takes at most 1.2 times as long as the first.
"""

import argparse
import heapq
import itertools
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

from mnist_ray import __version__
from mnist_ray.config import JobSpec, TrainingConfig, parse_spec
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.pipeline.early_stopping import SuccessiveHalving
from mnist_ray.pipeline.search import WAITING, SuggestedTrials, TrialController
from mnist_ray.pipeline.spent_checkpoints import spent_checkpoints_removed
from mnist_ray.pipeline.tasks import Execution, TrainingTask
from mnist_ray.record import event_log
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import RECORD_FORMAT, EpochReported, Event, RunTaken
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage import files

TENTHS = 10
POLL_S = 0.05
ON_ONE_THREAD = Execution(1, 1, "cpu", num_failures=0)


@dataclass
class Times:
    """Times of a search, in seconds of one monotonic clock."""

    reported: dict[tuple[str, int], float] = field(default_factory=dict)  # by training and epoch: when the epoch ended
    published: dict[tuple[str, int], float] = field(default_factory=dict)
    refills_s: list[float] = field(default_factory=list)  # from a trial's end to the start of the slot's next trial
    driver_lags_s: list[float] = field(default_factory=list)  # from an epoch's end to the driver's look at it
    num_files: int = 0

    def take(self, numbered: Sequence[Numbered]) -> None:
        """Note the publication of a file's events."""
        now = time.monotonic()
        self.num_files += 1
        for event in (each.event for each in numbered):
            if isinstance(event, EpochReported):
                self.published[event.id, event.metrics.epoch] = now


class TimerBackend:
    """Trials that are timers: `num_slots` of them at once, each epoch a fixed time after the one before."""

    def __init__(self, num_slots: int, epoch_s: float, times: Times) -> None:
        self._epoch_s = epoch_s
        self._times = times
        self._due: list[tuple[float, int, TrainingTask, int]] = []  # when, tie-break, trial, epoch
        self._free_since = [time.monotonic()] * num_slots
        self._order = itertools.count()

    def run_trials(self, controller: TrialController) -> None:
        """Run the controller's trials to their ends."""
        has_more = True
        while self._due or has_more:
            has_more = has_more and self._fill_a_slot(controller)
            self._report_due_epochs(controller)
            controller.poll()
            wait_s = self._due[0][0] - time.monotonic() if self._due else 0.0
            if wait_s > 0 and not (has_more and self._free_since):
                time.sleep(min(wait_s, POLL_S))

    def _fill_a_slot(self, controller: TrialController) -> bool:
        """Start one trial, as Ray Tune does between two looks at those that run; return False after the last."""
        if not self._free_since:
            return True
        task = controller.next_task()
        if task is not None and task is not WAITING:
            now = time.monotonic()
            self._times.refills_s.append(now - self._free_since.pop(0))
            self._push(now + self._epoch_s, task, 1)
        return task is not None

    def _push(self, when: float, task: TrainingTask, epoch: int) -> None:
        heapq.heappush(self._due, (when, next(self._order), task, epoch))

    def _report_due_epochs(self, controller: TrialController) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            ended_at, _, task, epoch = heapq.heappop(self._due)
            self._times.reported[task.id, epoch] = ended_at
            self._times.driver_lags_s.append(time.monotonic() - ended_at)
            goes_on = controller.on_epoch(task.id, made_up_metrics(task.config, epoch, self._epoch_s))
            if goes_on and epoch < task.config.num_epochs:
                self._push(ended_at + self._epoch_s, task, epoch + 1)
            else:
                controller.on_end(task.id, ON_ONE_THREAD)
                self._free_since.append(ended_at)


def made_up_metrics(config: TrainingConfig, epoch: int, elapsed_s: float) -> EpochMetrics:
    """Return an epoch whose loss depends on the learning rate."""
    loss = abs(config.learning_rate - 0.002) * 100 + 1 / epoch
    return EpochMetrics(epoch, elapsed_s, Score(loss, 4500, 5000), Score(loss, 4500, 5000))


def main() -> int:
    """Run the search and print the table; the exit code is 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10, help="of each trial")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--epoch-s", type=float, default=1.0)
    parser.add_argument("--request-ms", type=float, default=50.0)
    arguments = parser.parse_args()
    search = {"num_trials": arguments.trials, "num_epochs": arguments.epochs, "early_stopping": None}
    times = Times()
    began, began_cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="publishing-") as folder, slow_requests(arguments.request_ms / 1e3):
        spec = parse_spec({"data": {"name": "digits"}, "storage": folder, "search": search})
        search_with_timers(spec, TimerBackend(arguments.slots, arguments.epoch_s, times), arguments.slots, times)
    seconds, cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{arguments.trials:,} trials of {arguments.epochs} epochs of {arguments.epoch_s:g} s in {arguments.slots} "
        f"slots, {arguments.request_ms:g} ms a request: {seconds:.0f} s, {cpu_s:.0f} s of CPU, "
        f"{times.num_files:,} files, {memory_mb:.0f} MB"
    )
    return print_table(times)


@contextmanager
def slow_requests(seconds: float) -> Iterator[None]:
    """Let every request of the record to its storage take so long."""

    def slowed(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            time.sleep(seconds)
            function(*arguments)

        return call

    with (
        mock.patch.object(event_log, "create_atomic", slowed(files.create_atomic)),
        mock.patch("mnist_ray.pipeline.spent_checkpoints.remove_tree", slowed(files.remove_tree)),
    ):
        yield


def search_with_timers(spec: JobSpec, backend: TimerBackend, num_slots: int, times: Times) -> None:
    """Run a whole search on the backend, on a new run."""
    run = RunDir(Path(spec.storage) / spec.name)
    host, process = socket.gethostname(), this_process()
    writer = RunWriter(run, RunTaken(format=RECORD_FORMAT, version=__version__, host=host, process=process))
    add = run.log.add

    def timed_add(events: Sequence[Event]) -> list[Numbered]:
        published = add(events)
        times.take(published)
        return published

    run.log.add = timed_add  # type: ignore[method-assign]
    controller = TrialController(spec, writer, SuggestedTrials(spec, []), SuccessiveHalving(spec, 1257), num_slots)
    with spent_checkpoints_removed(writer):
        backend.run_trials(controller)
        writer.flush()
    writer.close()
    assert run.state.num_ended("search") == spec.search.num_trials


def print_table(times: Times) -> int:
    """Print the delays by tenths of the search; return 1 where a goal is missed."""
    reported = sorted(times.reported.items(), key=lambda item: item[1])
    delays = np.array([times.published[key] - at for key, at in reported])
    parts = np.array_split(delays, TENTHS)
    print("seconds from an epoch's end to its publication, by tenths of the search")
    print("  tenth    " + " ".join(f"{number:6d}" for number in range(1, TENTHS + 1)) + "     all")
    for name, percent in (("median", 50), ("99 %", 99), ("100 %", 100)):
        print(f"  {name:8s} " + " ".join(f"{np.percentile(part, percent):6.3f}" for part in (*parts, delays)))
    print("  mean     " + " ".join(f"{part.mean():6.3f}" for part in (*parts, delays)))
    for name, seconds in (("driver's look at an epoch", times.driver_lags_s), ("slot's next trial", times.refills_s)):
        print(f"seconds to the {name}: median {statistics.median(seconds):.3f}, 99 % {np.percentile(seconds, 99):.3f}")
    at_most_s, ratio = float(np.percentile(delays, 99)), float(parts[-1].mean() / parts[0].mean())
    is_met = at_most_s < 2.0 and ratio <= 1.2
    print(
        f"99 % within {at_most_s:.3f} s (goal 2), last tenth {ratio:.2f} of the first (goal 1.2): "
        f"{'met' if is_met else 'MISSED'}"
    )
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
