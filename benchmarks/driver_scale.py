"""What does a search cost its driver, and does that grow with the number of trials? python benchmarks/driver_scale.py

Simulated: whole searches through the real ledger (record, study, early stopping) whose epochs are made up; a plain
loop stands for Ray Tune, one trial at a time. Each search has a process of its own. A row says what one trial, and one
reported epoch, took of the driver's CPU time (the system's part for it included, waiting for the disk not) in that part
of the search. "suggest" is TPE, "tell" the study's hearing of an end, "record" the run's log, "stop" early stopping;
what is left is the rest. Then what is done once: making the tables, and reading the record for going on.

Real (--real 100): as many tiny trainings on digits by Ray Tune on a cluster of this machine, two at a time. A row a
tenth of the search: the CPU time of the driver's process with all its threads, Ray's in it too, and wall time.
"""

import argparse
import itertools
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler

from mnist_ray import JobSpec, RunDir, parse_spec
from mnist_ray.record.rundir import Training
from mnist_ray.record.views import write_views
from mnist_ray.running import tuning
from mnist_ray.running.heartbeat import TrialWatch
from mnist_ray.running.job import Site, search_job
from mnist_ray.running.stages import Listener

SIZES = (100, 1_000, 10_000)
PARTS = ("suggest", "tell", "record", "stop")
SPACE = {"learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}, "dropout": {"low": 0.0, "high": 0.6}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="trials of each simulated search")
    parser.add_argument("--real", type=int, metavar="TRIALS", help="do real trials instead")
    parser.add_argument("--folder", type=Path, help="where runs are written meanwhile; /dev/shm spares the disk")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=arguments.folder))
    try:
        if arguments.real:
            search_really(arguments.real, folder)
            return
        for num_trials in arguments.sizes:
            process = multiprocessing.get_context("spawn").Process(target=simulate, args=(num_trials, folder))
            process.start()
            process.join()
    finally:
        shutil.rmtree(folder)


# --- simulated


class Stopwatch:
    """The CPU seconds of this process by what they were spent on, and how many trials and epochs that was."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.spent_s: dict[str, float] = dict.fromkeys((*PARTS, "all", "epoch"), 0.0)

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.spent_s[part] += time.process_time() - began

    def follow(self, part: str, owner: object, *methods: str) -> None:
        """Time these methods of `owner` from now on."""
        for name in methods:
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.running(part):
                return call(*arguments, **named)

        return timed


@dataclass(frozen=True)
class Mark:
    """How far a search was, and what it had taken."""

    num_trials: int
    num_epochs: int
    spent_s: dict[str, float]
    peak_mib: float


class MadeUpTrial:
    """As much of a Tune trial as the ledger and early stopping look at."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.trial_id = config["training_id"]
        self.num_failures = 0
        self.last_result: dict[str, Any] = {}


class NobodyHangs(TrialWatch):
    """Stands for the watch over trials' processes."""

    def end_hanging(self, in_flight: Collection[str]) -> dict[str, str]:
        return {}


def simulate(num_trials: int, folder: Path) -> None:
    spec = parse_spec(
        {"name": f"simulated-{num_trials}", "data": {"name": "digits"}, "search": {"num_trials": num_trials}}
    )
    run = RunDir(folder / spec.name)
    run.take({"host": "here", "pid": 0, "version": "0"})
    run.record_stage("started", spec=spec.model_dump(mode="json"))
    marks = marks_of(spec, run, {0, 10, 100, 1_000, 10_000, num_trials * 9 // 10, num_trials})
    print(f"{num_trials:,} trials with {marks[-1].num_epochs:,} epochs, CPU ms of the driver:", flush=True)
    print(f"{'trials':>16} {'a trial':>8} {' '.join(f'{part:>8}' for part in PARTS)} {'rest':>8} {'an epoch':>9}  peak")
    for earlier, later in itertools.pairwise(marks):
        print(line(earlier, later))
    say_what_is_done_once(spec, run)


def marks_of(spec: JobSpec, run: RunDir, numbers: Collection[int]) -> list[Mark]:
    """Do the search; a mark after so many trials each."""
    watch = Stopwatch()
    ledger: Any = tuning._Ledger(spec, run, Listener(), None, [], NobodyHangs())
    watch.follow("suggest", ledger._study, "suggest")
    watch.follow("tell", ledger._study, "tell")
    watch.follow("record", run, "record_asked", "record_epoch", "record_ended", "training", "remove_checkpoints")
    watch.follow("stop", ledger.scheduler, "on_trial_add", "on_trial_result", "on_trial_complete")
    marks = []
    while True:
        if watch.count["trials"] in numbers:
            marks.append(mark_of(watch))
        with watch.running("all"):
            values = ledger.next_trial()
        if values is None:
            return marks
        do_trial(spec, ledger, MadeUpTrial(values), watch)
        watch.count["trials"] += 1


def do_trial(spec: JobSpec, ledger: Any, trial: MadeUpTrial, watch: Stopwatch) -> None:
    """Tune's order of things."""
    with watch.running("all"):
        ledger.scheduler.on_trial_add(None, trial)
    for row in made_up_rows(trial.config["config"], spec.search.num_epochs):
        watch.count["epochs"] += 1
        with watch.running("all"), watch.running("epoch"):
            action = ledger.scheduler.on_trial_result(None, trial, row)
            trial.last_result = row
            ledger.on_trial_result(0, [], trial, row)
            ledger.on_step_end(0, [])
        if action == TrialScheduler.STOP:
            break
    with watch.running("all"):
        ledger.scheduler.on_trial_complete(None, trial, trial.last_result)
        ledger.on_trial_complete(0, [], trial)
        ledger.on_step_end(0, [])


def made_up_rows(config: dict[str, Any], num_epochs: int) -> Iterator[dict[str, Any]]:
    """A smooth valley around learning rate 0.003 and dropout 0.2, and noise that follows from the trial's seed."""
    chance = random.Random(config["seed"])
    depth = abs(config["learning_rate"] - 0.003) * 30 + (config["dropout"] - 0.2) ** 2
    for epoch in range(1, num_epochs + 1):
        loss = depth + 0.3 / epoch + 0.05 * chance.random()
        row: dict[str, Any] = {"epoch": epoch, "elapsed_s": 1.0 + chance.random()}
        for split, num_examples in (("train", 55_000), ("val", 5_000)):
            correct = int(num_examples / (1 + loss))
            row |= {f"{split}_loss": loss, f"{split}_accuracy": correct / num_examples}
            row |= {f"{split}_correct": correct, f"{split}_examples": num_examples}
        yield row


def mark_of(watch: Stopwatch) -> Mark:
    return Mark(watch.count["trials"], watch.count["epochs"], dict(watch.spent_s), peak_mib())


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def line(earlier: Mark, later: Mark) -> str:
    spent_ms = {part: 1000 * (later.spent_s[part] - earlier.spent_s[part]) for part in later.spent_s}
    num_trials, num_epochs = later.num_trials - earlier.num_trials, later.num_epochs - earlier.num_epochs
    rest_ms = spent_ms["all"] - sum(spent_ms[part] for part in PARTS)
    figures = [spent_ms["all"], *(spent_ms[part] for part in PARTS), rest_ms]
    return (
        f"{earlier.num_trials + 1:>7,} - {later.num_trials:>6,} "
        + " ".join(f"{figure / num_trials:8.2f}" for figure in figures)
        + f" {spent_ms['epoch'] / num_epochs:9.2f}  {later.peak_mib:.0f} MiB"
    )


def say_what_is_done_once(spec: JobSpec, run: RunDir) -> None:
    once = Stopwatch()
    with once.running("record"):
        again = RunDir(run.path)
        trials = again.trainings("search")
    with once.running("tell"):
        tuning._Ledger(spec, again, Listener(), None, trials, NobodyHangs())
    with once.running("all"):
        write_views(again)
    print(
        f"once: {once.spent_s['record']:.1f} s to read the record again, {once.spent_s['tell']:.1f} s to make the "
        f"study of it, {once.spent_s['all']:.1f} s for all tables; peak {peak_mib():.0f} MiB\n",
        flush=True,
    )


# --- real


class Notes(Listener):
    """The times of each trial's end."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []
        self.peaks_mib: list[float] = []

    def stage_began(self, stage: str, total: int, done: int, unit: str) -> None:
        if stage == "search":
            self._note()

    def trial_ended(self, training: Training) -> None:
        self._note()

    def _note(self) -> None:
        self.cpu_s.append(time.process_time())
        self.wall_s.append(time.monotonic())
        self.peaks_mib.append(peak_mib())


def search_really(num_trials: int, folder: Path) -> None:
    spec = parse_spec(
        {
            "name": f"real-{num_trials}",
            "storage": str(folder),
            "data": {"name": "digits", "num_validation": 180},
            "recipe": {"batch_size": 512},
            "search": {"num_trials": num_trials, "num_epochs": 2, "space": SPACE, "max_concurrent_trials": 2},
        }
    )
    notes = Notes()
    ray_folder = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))  # short: Ray's sockets lie in it
    try:
        search_job(spec, Site(temporary_folder=ray_folder), notes)
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    print(f"{num_trials:,} real trials\n{'trials':>16} {'CPU ms':>8} {'wall ms':>8}  peak   (ms a trial)")
    ends = sorted({num_trials * tenth // 10 for tenth in range(11)})
    for earlier, later in itertools.pairwise(ends):
        cpu_ms, wall_ms = (
            1000 * (times[later] - times[earlier]) / (later - earlier) for times in (notes.cpu_s, notes.wall_s)
        )
        print(f"{earlier + 1:>7,} - {later:>6,} {cpu_ms:8.1f} {wall_ms:8.1f}  {notes.peaks_mib[later]:.0f} MiB")
    seconds_after = time.process_time() - notes.cpu_s[-1], time.monotonic() - notes.wall_s[-1]
    print(f"after the last trial: {seconds_after[0]:.1f} s of CPU time, {seconds_after[1]:.1f} s")


if __name__ == "__main__":
    main()
