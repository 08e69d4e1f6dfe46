"""Ray's own processes die under a run: one line says which, the exit code is 5, and the same command goes on."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray import RunDir
from tests.ray_head import BIN, REPOSITORY, descendants

pytestmark = pytest.mark.slow

SMALL = (
    *("--set", "search.num_trials=2", "--set", "search.num_epochs=200", "--set", "search.early_stopping=null"),
    *("--set", "search.max_concurrent_trials=1", "--set", "final=null", "--name", "small"),
)


@pytest.fixture
def ray_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mrv-", dir="/tmp"))  # short: sockets lie below it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(storage: Path, ray_dir: Path) -> "subprocess.Popen[str]":
    command: list[str | Path] = [
        BIN / "mnist-ray", "run", "jobs/quickstart.yaml", *SMALL, "--storage", storage, "--ray-dir", ray_dir,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_epochs(run: RunDir, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while sum(training.epochs_done for training in run.state.trainings("search")) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def program_of(pid: int) -> str:
    """Return the program of a process and its script, if any; "" for one that is gone."""
    with contextlib.suppress(OSError):
        return " ".join(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:3])
    return ""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("/raylet/raylet", "(raylet) (127.0.0.1:"),
        ("gcs_server", "(GCS) (127.0.0.1:"),
        ("ray::DashboardAgent", "dashboard agent (process "),
        ("ray::RuntimeEnvAgent", "agent for environments (process "),
    ],
    ids=["raylet", "gcs", "dashboard agent", "environment agent"],
)
def test_lost_service_is_named(tmp_path: Path, ray_dir: Path, service: str, said: str) -> None:
    run = RunDir(tmp_path / "small")
    with start(tmp_path, ray_dir) as process:
        try:
            wait_for_epochs(run, 3, process)
            pids = [pid for pid in descendants(process.pid) if service in program_of(pid)]
            assert pids
            began = time.monotonic()
            os.kill(pids[0], signal.SIGKILL)
            printed, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 5, printed
    assert said in printed and "has died: run the same command again" in printed
    assert time.monotonic() - began < 60
    assert "Traceback" not in printed
    if "agent" not in said:
        assert RunDir(tmp_path / "small").paths.results_csv.is_file(), "it ended in good order"
