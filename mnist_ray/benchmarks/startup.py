"""Where each second of a whole job goes that is not training: runs of the command line, dated by their records."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mnist_ray.benchmarks.findings import Section
from mnist_ray.benchmarks.folders import short_folder
from mnist_ray.config import Stage
from mnist_ray.record.events import (
    ConfigurationSelected,
    Event,
    FinalEnded,
    RunTaken,
    SearchEnded,
    SessionStarted,
    TestScored,
)
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.timing import training_spans

STAGES: tuple[Stage, ...] = ("search", "final", "retrain")
START = "import sys; from mnist_ray.cli.main import main; sys.exit(main())"


@dataclass(frozen=True)
class JobSeconds:
    """One job's seconds. A first step is dated by the report of its epoch, less what the epoch took."""

    command_to_owner: float  # until the run is this process's: the command's imports, the spec
    to_session: float  # the data, and the start of Ray
    to_first_step: float  # of any trial
    search_to_final: float  # from the search's closing event to the first step of the final round
    final_to_retraining: float
    test_to_prompt: float  # from the last test score to the end of the command: exports, report, Ray's shutdown
    training: float  # in all trainings together
    whole: float

    @property
    def until_first_step(self) -> float:
        return self.command_to_owner + self.to_session + self.to_first_step


LABELS = {
    "command_to_owner": "the command's start, until the run has its owner",
    "to_session": "from there: data, and Ray's own start",
    "to_first_step": "from there: until the first optimizer step of any trial",
    "until_first_step": "these three together",
    "search_to_final": "from the search's closing event to the first step of the final round",
    "final_to_retraining": "from the selection to the first step of the retraining",
    "test_to_prompt": "from the last test score to the prompt",
    "training": "training itself, summed over trainings that run side by side",
    "whole": "the whole command",
}


def measure_startup(num_rounds: int) -> Section:
    """Run the quickstart `num_rounds` times, and once before that to warm the file cache."""
    with short_folder() as folder:
        jobs = [_run_job(folder) for _ in range(num_rounds + 1)][1:]
    medians = {name: statistics.median(getattr(job, name) for job in jobs) for name in LABELS}
    rows = [{"": label, "median, s": round(medians[name], 1)} for name, label in LABELS.items()]
    return Section(
        "Start-up and end",
        f"The quickstart as a command with a Ray of its own, {num_rounds} times with a warm file cache.",
        rows,
        {"time of the whole command to training alone on all CPUs": medians["whole"] / medians["training"] * _cpus()},
    )


def _cpus() -> int:
    from joblib import cpu_count

    return int(cpu_count())


def _run_job(folder: Path) -> JobSeconds:
    storage = folder / "results"
    shutil.rmtree(storage, ignore_errors=True)
    options = ["--storage", str(storage), "--ray-dir", str(folder / "ray")]
    command = [sys.executable, "-c", START, "run", "quickstart", *options]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    began = time.time()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = time.time()
    return seconds_of(RunDir(next(storage.glob("*/record")).parent), began, ended)


def seconds_of(run: RunDir, began: float, ended: float) -> JobSeconds:
    """Return the seconds of a finished run of one session, whose command began and ended at these times."""
    events = [numbered.event for numbered in RunDir(run.path).log.read_new()]

    def at(kind: type[Event]) -> float:
        return max(seconds_since_1970(event) for event in events if isinstance(event, kind))

    def first_step(stage: Stage) -> float:
        return min(start for training in run.state.trainings(stage) for start, _ in training_spans(training)[:1])

    closed = at(FinalEnded) if any(isinstance(event, FinalEnded) for event in events) else at(SearchEnded)
    return JobSeconds(
        command_to_owner=at(RunTaken) - began,
        to_session=at(SessionStarted) - at(RunTaken),
        to_first_step=first_step("search") - at(SessionStarted),
        search_to_final=first_step("final") - at(SearchEnded) if run.state.trainings("final") else 0.0,
        final_to_retraining=first_step("retrain") - max(closed, at(ConfigurationSelected)),
        test_to_prompt=ended - at(TestScored),
        training=sum(training.elapsed_s for stage in STAGES for training in run.state.trainings(stage)),
        whole=ended - began,
    )


def seconds_since_1970(event: Event) -> float:
    return datetime.fromisoformat(event.at).timestamp()
