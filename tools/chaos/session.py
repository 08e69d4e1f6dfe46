"""The job's command as a real process: started, watched and brought to an end."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.chaos import processes
from tools.chaos.processes import SERVICES, Process

REPOSITORY = Path(__file__).resolve().parents[2]
STAGE_LINE = re.compile(r"^\d\d:\d\d:\d\d (\w+): (.*)$", re.MULTILINE)  # as the driver prints off a terminal

Stage = Literal["start", "search", "retrain", "test"]  # in this order; "test" lasts until the driver's end
STAGES: tuple[Stage, ...] = ("start", "search", "retrain", "test")


@dataclass(frozen=True)
class Job:
    """What is run, again and again."""

    spec: Path
    storage: Path  # holds the runs, and a log of the output of each one's drivers
    ray_dir: Path  # short: sockets lie below it

    def command(self, name: str) -> list[str]:
        arguments = ["run", self.spec, "--storage", self.storage, "--name", name, "--ray-dir", self.ray_dir]
        return [sys.executable, "-m", "mnist_ray.cli", *map(str, arguments)]

    def log(self, name: str) -> Path:
        return self.storage / f"{name}.log"

    def environment(self) -> dict[str, str]:
        """One thread a process, nothing at a lower priority than the rest, and a cluster of its own."""
        settings = {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": "", "RAY_worker_niceness": "0"}
        return {**os.environ, **settings, "OMP_NUM_THREADS": "1"}


class Session:
    """The command started once, in a session of its own so that all its processes can be found."""

    def __init__(self, job: Job, name: str) -> None:
        self._log = job.log(name)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.time()
        self.signs: dict[Stage, float] = {"start": self.began}  # when each stage was first seen
        with self._log.open("ab") as log:
            self._offset = log.tell()
            self._process = subprocess.Popen(
                job.command(name),
                cwd=job.storage,
                env=job.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait()

    def stage(self) -> Stage:
        """Where the driver is, by its output."""
        stage = stage_of(self.output())
        self.signs.setdefault(stage, time.time())
        return stage

    def output(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._offset)
            return log.read().decode(errors="replace")

    def driver(self) -> Process | None:
        return next((process for process in self.processes() if process.pid == self.pid), None)

    def processes(self) -> list[Process]:
        return processes.of_session(self.pid)

    def left_behind(self) -> list[Process]:
        """What should have gone. Services of a killed driver's node first try for a minute to tell that node of it."""
        was_killed = self.exit_code == -signal.SIGKILL
        return [process for process in self.processes() if not (was_killed and process.title.startswith(SERVICES))]

    def end(self) -> None:
        """Nothing of it is left afterwards."""
        while left := self.processes():
            for process in left:
                processes.kill(process)
            self._process.poll()  # or it stays a child to be buried
            time.sleep(0.02)
        self._process.wait()


def stage_of(output: str) -> Stage:
    """Return the stage of a driver's latest line; in these lines everything before the search is "data"."""
    lines = STAGE_LINE.findall(output)
    stage, text = lines[-1] if lines else ("data", "")
    if stage == "retrain" and text.startswith("done"):
        return "test"
    return stage if stage in STAGES else "start"
