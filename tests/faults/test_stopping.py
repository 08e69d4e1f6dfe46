"""Ctrl-C, SIGTERM and `ray job stop` leave a run that the same command goes on with, and nothing that still runs.

The same without Ray: tests/pipeline/test_local_backend.py.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mnist_ray import RunDir
from mnist_ray.config import Stage
from mnist_ray.record.events import ConfigurationSelected
from tests.ray_head import BIN, REPOSITORY, Head, descendants

pytestmark = pytest.mark.slow

SMALL = (
    *("--set", "search.num_trials=3", "--set", "search.num_epochs=6", "--set", "search.early_stopping=null"),
    *("--set", "search.max_concurrent_trials=1", "--set", "retrain.num_epochs=60", "--name", "small"),
)


@pytest.fixture
def ray_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mrs-", dir="/tmp"))  # short: sockets lie below it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(storage: Path, ray_dir: Path) -> "subprocess.Popen[str]":
    command: list[str | Path] = [
        BIN / "mnist-ray", "run", "jobs/quickstart.yaml", *SMALL, "--storage", storage, "--ray-dir", ray_dir,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def num_epochs(run: RunDir, stage: Stage) -> int:
    return sum(training.epochs_done for training in run.state.trainings(stage))


def stop(process: "subprocess.Popen[str]", number: int) -> str:
    """Send a signal; the command prints how to go on and ends within ten seconds, its processes within fifteen."""
    below = list(descendants(process.pid))
    assert len(below) > 3
    process.send_signal(number)
    began = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 5, printed
    assert time.monotonic() - began < 10, printed
    assert "run the same command again" in printed
    assert "Traceback" not in printed
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 15 - (time.monotonic() - began))
    return printed


@pytest.mark.timeout(400)
def test_stopped_run_goes_on(tmp_path: Path, ray_dir: Path) -> None:
    run = RunDir(tmp_path / "small")
    with start(tmp_path, ray_dir) as process:
        wait_for(lambda: num_epochs(run, "search") >= 8, 120)  # in its second trial
        stop(process, signal.SIGTERM)
    first = run.state.trainings("search")[0]
    assert first.status == "complete"
    assert run.paths.results_csv.is_file()
    with start(tmp_path, ray_dir) as process:
        wait_for(lambda: num_epochs(run, "retrain") >= 2, 180)
        stop(process, signal.SIGINT)
    assert not list(ray_dir.glob("session_2*")), "Ray's own temporary files are gone"
    with start(tmp_path, ray_dir) as process:
        printed, _ = process.communicate(timeout=180)
        assert process.returncode == 0, printed
    assert run.state.trainings("search")[0] == first
    assert [training.epochs_done for training in run.state.trainings("search")] == [6, 6, 6]
    assert all(training.epochs_done == 60 for training in run.state.trainings("retrain"))
    assert sum(isinstance(event, ConfigurationSelected) for event in run.state.stage_events) == 1


@pytest.mark.timeout(200)
def test_stopped_job_can_go_on(head: Head) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(head.folder / "client"), "RAY_ADDRESS": head.dashboard, **head.environment}

    def ray_job(*arguments: str) -> str:
        done = subprocess.run(
            [BIN / "ray", "job", *arguments],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ray_job(
        "submit", "--no-wait", "--submission-id", "stopped", "--working-dir", ".", "--runtime-env",
        "jobs/runtime-env.yaml", "--", "python", "jobs/run.py", "jobs/quickstart.yaml", *SMALL, "--name", "stopped",
    )  # fmt: skip
    run = RunDir(head.folder / "mnist_ray" / "results" / "stopped")
    wait_for(lambda: num_epochs(run, "search") >= 2, 120)
    began = time.monotonic()
    ray_job("stop", "stopped")
    wait_for(
        lambda: "ray::ImplicitFunc" not in " ".join(descendants(head.pid).values()), 15 - (time.monotonic() - began)
    )
    assert "run the same command again" in ray_job("logs", "stopped")
    assert run.paths.results_csv.is_file(), "it ended in good order"
