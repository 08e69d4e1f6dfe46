"""A run as a job of a real head with token authentication: submitted twice, stopped, submitted again, fetched."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_ray.ray_backend.jobs.submit import JOB_ENVIRONMENT
from mnist_ray.record.rundir import RunDir
from tests.ray_backend.jobs.remote_client import CANARY, Command, Line, begin, client_environment, run
from tests.ray_head import BIN, REPOSITORY, Head, free_ports

QUICKSTART = REPOSITORY / "jobs" / "quickstart.yaml"
SMALL = (
    *("--name", "small", "--set", "search.max_concurrent_trials=1", "--set", "search.num_trials=6"),
    *("--set", "search.num_epochs=6", "--set", "confirm=null", "--set", "retrain.num_epochs=5"),
    *("--set", "retrain.workers=1"),
)
CUT_S = 4.0


@dataclass(frozen=True)
class Submitted:
    """A run that was submitted by two at once, stopped while it searched, and submitted over a line with a cut."""

    first: list[Command]
    meanwhile: dict[str, Command]
    stopped: Command
    second: Command
    run: Path  # where it lies with the cluster
    folder: Path  # of the commands


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    folder = tmp_path_factory.mktemp("client")
    first = [begin(folder, head, "submit", QUICKSTART, *SMALL) for _ in range(2)]
    first[0].wait_for("results go to")
    meanwhile = {
        "status": run(folder, head, "status"),
        "other spec": run(folder, head, "submit", QUICKSTART, *SMALL, "--set", "seed=1"),
    }
    first[0].wait_for("trial-0000")
    stopped = run(folder, head, "stop", "small")
    for each in first:
        each.end()
    line = Line(head.dashboard)
    second = begin(folder, head, "submit", QUICKSTART, *SMALL, "--address", line.address)
    second.wait_for("retrain: 0 of")
    line.cut()
    time.sleep(CUT_S)
    line.restore()
    assert second.end() == 0, second.said + second.noted
    line.cut()
    return Submitted(first, meanwhile, stopped, second, head.folder / "mnist_ray" / "results" / "small", folder)


@pytest.mark.timeout(600)
def test_two_who_submit_the_same_at_once_follow_one_job(submitted: Submitted) -> None:
    notes = sorted(each.noted for each in submitted.first)
    assert sum("mnist-ray-small is submitted" in note for note in notes) == 1, notes
    assert sum("already: followed" in note for note in notes) == 1, notes
    assert submitted.first[0].said == submitted.first[1].said
    assert submitted.first[0].said.startswith(f"results go to {submitted.run}\n")  # without Ray's own lines
    assert "mnist-ray-small@2 is submitted" in submitted.second.noted


def test_a_job_that_is_stopped_ends_in_order_and_with_5(submitted: Submitted) -> None:
    assert [each.end() for each in submitted.first] == [5, 5]
    assert all("was stopped: the same 'mnist-ray submit' goes on" in each.noted for each in submitted.first)
    assert submitted.stopped.end() == 0
    assert "mnist-ray-small is stopped" in submitted.stopped.said
    assert [event["kind"] for event in RunDir(submitted.run).events()].count("owner") == 2


def test_a_run_that_goes_on_with_another_spec_is_refused(submitted: Submitted) -> None:
    other = submitted.meanwhile["other spec"]
    assert other.end() == 2
    assert "name small: mnist-ray-small is running with another spec" in other.noted
    assert "mnist-ray stop small" in other.noted and "--name" in other.noted


def test_every_line_comes_once_though_the_connection_was_lost(submitted: Submitted, head: Head) -> None:
    notes = submitted.second.noted
    assert notes.count("nothing answers there") == 1, notes
    assert "goes on, and is asked for again for 60 minutes" in notes
    assert notes.count("connected again after") == 1
    logs = run(submitted.folder, head, "logs", "small")
    assert logs.end() == 0
    assert submitted.second.said == logs.said
    assert "retrain: done" in logs.said
    again = run(submitted.folder, head, "logs", "small", "--follow")
    assert (again.end(), again.said) == (0, logs.said)


def test_status_lists_the_runs_and_says_of_one_where_it_lies(submitted: Submitted, head: Head) -> None:
    (line,) = [each for each in submitted.meanwhile["status"].said.splitlines() if each.startswith("small")]
    assert "running" in line
    now = run(submitted.folder, head, "status", "small").said
    assert "mnist-ray-small@2" in now and "succeeded since" in now and "~/mnist_ray/results" in now
    unknown = run(submitted.folder, head, "status", "absent")
    assert unknown.end() == 2
    assert "no job of a run 'absent' is known there (there: " in unknown.noted and "small" in unknown.noted


@pytest.mark.timeout(600)
def test_a_submitted_run_gets_what_a_local_one_gets(submitted: Submitted, tmp_path: Path) -> None:
    assert f"everything lies in {submitted.run}" in submitted.second.said  # an absolute place, named in the log
    temporary = Path(f"/tmp/mrl-{os.getpid()}")
    command: list[str | Path] = [BIN / "python", "-m", "mnist_ray.cli", "run", QUICKSTART, *SMALL]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    local = subprocess.run(
        [*command, "--storage", tmp_path, "--ray-dir", temporary],
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    shutil.rmtree(temporary, ignore_errors=True)
    assert local.returncode == 0, local.stdout + local.stderr
    there, here = (json.loads((path / "result.json").read_text()) for path in (submitted.run, tmp_path / "small"))
    assert there["choice"] == here["choice"]
    assert there["trials"] == here["trials"]
    assert there["trials"]["pruned"] >= 1
    counts = [{name: score["test_correct"] for name, score in each["tested"].items()} for each in (there, here)]
    assert counts[0] == counts[1]


@pytest.mark.timeout(600)
def test_rays_own_command_shows_the_finished_run(submitted: Submitted, head: Head) -> None:
    """The README's line."""
    command: list[str | Path] = [
        BIN / "ray", "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime-env.yaml", "--",
        "python", "jobs/run.py", "jobs/quickstart.yaml", *SMALL,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, env=client_environment(head), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{submitted.run} is finished: nothing to do" in done.stdout


def test_both_ways_to_submit_set_the_same_variables() -> None:
    given = yaml.safe_load((REPOSITORY / "jobs" / "runtime-env.yaml").read_text())
    assert given == {"env_vars": JOB_ENVIRONMENT}


@pytest.mark.timeout(300)
def test_a_job_that_fails_gives_its_own_exit_code(head: Head, tmp_path: Path) -> None:
    done = run(tmp_path, head, "submit", QUICKSTART, "--name", "unwritable", "--storage", "/proc/nowhere")
    assert done.end() == 6, done.said + done.noted
    assert "/proc/nowhere" in done.said and "Traceback" not in done.said
    assert "mnist-ray-unwritable failed (exit code 6)" in done.noted
    assert "exit code 6" in run(tmp_path, head, "status").said


@pytest.mark.timeout(300)
def test_a_mistake_is_refused_before_anything_is_submitted(head: Head, tmp_path: Path) -> None:
    done = run(tmp_path, head, "submit", QUICKSTART, "--set", "retrain.workers=9", "--name", "mistake")
    assert done.end() == 2, done.said + done.noted
    assert "retrain.workers: 9 workers with 1 CPUs each need 9 CPUs, the cluster has 2" in done.noted
    assert "mistake" not in run(tmp_path, head, "status").said


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_TOKEN": "of-another-cluster-0123456789abcdef0123456789abcdef"}, "is not this cluster's"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "is missing"),
        ({"RAY_AUTH_MODE": "disabled"}, "is missing"),
    ],
)
def test_a_wrong_token_is_told_from_none(head: Head, tmp_path: Path, environment: dict[str, str], said: str) -> None:
    done = run(tmp_path, head, "submit", QUICKSTART, "--name", "intruder", **environment)
    assert done.end() == 2
    assert len(done.noted.splitlines()) == 1
    assert f"--address {head.dashboard}: the cluster wants a token, and the one here {said}" in done.noted
    assert "~/.ray/auth_token" in done.noted and "RAY_AUTH_MODE=token" in done.noted


# --- fetching ------------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict[str, bytes]:
    """Everything in it that is not disposable."""
    disposable = {"leases", "checkpoints", "ray"}
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in disposable
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.timeout(300)
def test_a_run_is_fetched_through_the_cluster_and_from_its_storage(
    submitted: Submitted, head: Head, tmp_path: Path
) -> None:
    fetched = run(tmp_path, head, "fetch", "small")
    assert fetched.end() == 0, fetched.said + fetched.noted
    assert f"small is fetched through {head.dashboard}" in fetched.noted
    assert "verdict:" in fetched.said and f"everything lies in {tmp_path / 'results' / 'small'}" in fetched.said
    here = content_of(tmp_path / "results" / "small")
    assert here == content_of(submitted.run)  # the record, and the views made here from it
    assert {"record/000001.json", "results.csv", "report.html", "model/model.safetensors"} <= set(here)
    assert not list((tmp_path / "results").glob(".*"))
    storage = ("--storage", submitted.run.parent)
    again = run(tmp_path, head, "fetch", "small", *storage, RAY_ADDRESS="")  # over the earlier copy, without a cluster
    assert again.end() == 0, again.noted
    assert content_of(tmp_path / "results" / "small") == here
    assert "fetch" not in run(tmp_path, head, "status").said
    own = run(tmp_path, head, "fetch", "small", *storage, "--to", submitted.run.parent)
    assert own.end() == 2
    assert "is no copy" in own.noted
    absent = run(tmp_path, head, "fetch", "absent")
    assert absent.end() == 2
    assert "no job there says where the run 'absent' lies" in absent.noted and "--storage" in absent.noted


# --- what else must hold of a job that ran -------------------------------------------------------------------------


def test_secrets_of_this_machine_stay_here(submitted: Submitted, head: Head) -> None:
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    asked = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        listed = answer.read()
    assert b"mnist-ray-small@2" in listed and b"mnist_ray_spec_sha256" in listed
    assert CANARY.encode() not in listed
    looked_at = [path for path in head.folder.rglob("*") if path.is_file()]  # uploads, logs, results
    assert any(path.name == "job-driver-mnist-ray-small.log" for path in looked_at)
    assert [path for path in looked_at if CANARY.encode() in path.read_bytes()] == []


@pytest.fixture
def dashboard(submitted: Submitted) -> Iterator[str]:
    (port,) = free_ports(1)
    command: list[str | Path] = [
        BIN / "optuna-dashboard",
        f"sqlite:///{submitted.run / 'study.sqlite3'}",
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def test_optunas_own_dashboard_shows_the_study(dashboard: str) -> None:
    (summary,) = _get(f"{dashboard}/api/studies")["study_summaries"]
    assert summary["study_name"] == "small"
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
