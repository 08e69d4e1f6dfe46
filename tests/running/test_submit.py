"""`ray job submit` of the quickstart, whole, to a real head with token authentication; and Optuna's dashboard."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray_head import BIN, REPOSITORY, Head, free_ports

ONE_AT_A_TIME = ("--set", "search.max_concurrent_trials=1")


def submit(head: Head, *arguments: str, token: bool = True) -> "subprocess.CompletedProcess[str]":
    """The README's line, from a client whose home is its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(head.folder / "client"), "RAY_ADDRESS": head.dashboard}
    if token:
        environment |= head.environment
    command: list[str | Path] = [
        BIN / "ray", "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime-env.yaml", "--",
        "python", "jobs/run.py", "jobs/quickstart.yaml", *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=540, check=False
    )


@pytest.fixture(scope="module")
def submitted(head: Head) -> tuple[str, Path]:
    """What the submitted quickstart printed, and the run's folder."""
    done = submit(head, *ONE_AT_A_TIME)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, head.folder / "mnist_ray" / "results" / "quickstart"


@pytest.mark.timeout(900)
def test_a_submitted_quickstart_gets_what_a_local_one_gets(submitted: tuple[str, Path], tmp_path: Path) -> None:
    printed, run = submitted
    assert f"everything lies in {run}" in printed  # an absolute place, named in the log
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    temporary = Path(f"/tmp/mrl-{os.getpid()}")
    command: list[str | Path] = [
        BIN / "mnist-ray",
        "run",
        "jobs/quickstart.yaml",
        "--storage",
        tmp_path,
        "--ray-dir",
        temporary,
    ]
    local = subprocess.run(
        [*command, *ONE_AT_A_TIME],
        cwd=REPOSITORY,
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    shutil.rmtree(temporary, ignore_errors=True)
    assert local.returncode == 0, local.stdout + local.stderr
    there, here = (json.loads((path / "result.json").read_text()) for path in (run, tmp_path / "quickstart"))
    assert there["choice"] == here["choice"]
    assert there["trials"] == here["trials"]
    assert there["trials"]["pruned"] >= 1
    assert sum(there["trials"].values()) >= 8
    counts = [{name: score["test_correct"] for name, score in each["tested"].items()} for each in (there, here)]
    assert counts[0] == counts[1]


def test_without_the_token_nothing_is_submitted(head: Head) -> None:
    done = submit(head, "--name", "intruder", token=False)
    assert done.returncode != 0
    assert not (head.folder / "mnist_ray" / "results" / "intruder").exists()


@pytest.mark.timeout(900)
def test_the_same_submission_again_shows_the_finished_run(head: Head, submitted: tuple[str, Path]) -> None:
    done = submit(head, *ONE_AT_A_TIME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is finished: nothing to do" in done.stdout


def test_a_submitted_mistake_fails_the_job(head: Head) -> None:
    done = submit(head, "--set", "search.num_trials=0", "--name", "mistake")
    assert done.returncode != 0
    assert "search.num_trials" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.fixture
def dashboard(submitted: tuple[str, Path]) -> Iterator[str]:
    (port,) = free_ports(1)
    command: list[str | Path] = [
        BIN / "optuna-dashboard",
        f"sqlite:///{submitted[1] / 'study.sqlite3'}",
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.timeout(900)
def test_optunas_own_dashboard_shows_the_study(dashboard: str) -> None:
    (summary,) = _get(f"{dashboard}/api/studies")["study_summaries"]
    assert summary["study_name"] == "quickstart"
    study = _get(f"{dashboard}/api/studies/{summary['study_id']}")
    states = [trial["state"] for trial in study["trials"]]
    assert set(states) == {"Complete", "Pruned"}
    pruned = next(trial for trial in study["trials"] if trial["state"] == "Pruned")
    assert pruned["intermediate_values"]


def _get(address: str) -> Any:
    for attempt in range(100):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            if attempt == 99:
                raise
            time.sleep(0.3)
    raise AssertionError
