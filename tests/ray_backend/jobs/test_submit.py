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
from tests.ray_backend.jobs.remote_client import CANARY, Command, Relay, begin, client_environment, run
from tests.ray_head import BIN, REPOSITORY, Head, free_ports

QUICKSTART = REPOSITORY / "jobs" / "quickstart.yaml"
SMALL = (
    *("--name", "small", "--set", "search.max_concurrent_trials=1", "--set", "search.num_trials=6"),
    *("--set", "search.num_epochs=6", "--set", "final=null", "--set", "retrain.num_epochs=5"),
    *("--set", "retrain.workers=1"),
)
CUT_S = 4.0


@dataclass(frozen=True)
class Submitted:
    """A run submitted by two clients at once, stopped while it searched, and submitted over a connection with a cut."""

    first: list[Command]
    meanwhile: dict[str, Command]
    stopped: Command
    second: Command
    run: Path  # its folder with the cluster
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
    relay = Relay(head.dashboard)
    second = begin(folder, head, "submit", QUICKSTART, *SMALL, "--address", relay.address)
    second.wait_for("retrain: 0 of")
    relay.cut()
    time.sleep(CUT_S)
    relay.restore()
    assert second.end() == 0, second.stdout + second.stderr
    relay.cut()
    return Submitted(first, meanwhile, stopped, second, head.folder / "mnist_ray" / "results" / "small", folder)


@pytest.mark.timeout(600)
def test_two_submits_share_one_job(submitted: Submitted) -> None:
    messages = sorted(each.stderr for each in submitted.first)
    assert sum("mnist-ray-small is submitted" in message for message in messages) == 1, messages
    assert sum("following it" in message for message in messages) == 1, messages
    assert submitted.first[0].stdout == submitted.first[1].stdout
    first, second = submitted.first[0].stdout.splitlines()[:2]  # without Ray's own lines
    assert (first.split(" ", 1)[1][:9], second) == ("starting:", f"results go to {submitted.run}")
    assert "mnist-ray-small@2 is submitted" in submitted.second.stderr


def test_stopped_job_exits_with_5(submitted: Submitted) -> None:
    assert [each.end() for each in submitted.first] == [5, 5]
    assert all("was stopped: the same 'mnist-ray submit' continues" in each.stderr for each in submitted.first)
    assert submitted.stopped.end() == 0
    assert "mnist-ray-small is stopped" in submitted.stopped.stdout
    assert len(RunDir(submitted.run).state.sessions) == 2


def test_other_spec_is_refused(submitted: Submitted) -> None:
    other = submitted.meanwhile["other spec"]
    assert other.end() == 2
    assert "name small: mnist-ray-small is running with another spec" in other.stderr
    assert "mnist-ray stop small" in other.stderr and "--name" in other.stderr


def test_lost_connection_loses_no_line(submitted: Submitted, head: Head) -> None:
    messages = submitted.second.stderr
    assert messages.count("nothing answers there") == 1, messages
    assert "keeps running; retrying for 60 minutes" in messages
    assert messages.count("connected again after") == 1
    logs = run(submitted.folder, head, "logs", "small")
    assert logs.end() == 0
    assert submitted.second.stdout == logs.stdout
    assert "retrain: done" in logs.stdout
    again = run(submitted.folder, head, "logs", "small", "--follow")
    assert (again.end(), again.stdout) == (0, logs.stdout)


def test_status_lists_runs(submitted: Submitted, head: Head) -> None:
    (line,) = [each for each in submitted.meanwhile["status"].stdout.splitlines() if each.startswith("small")]
    assert "running" in line
    now = run(submitted.folder, head, "status", "small").stdout
    assert "mnist-ray-small@2" in now and "succeeded since" in now and "~/mnist_ray/results" in now
    unknown = run(submitted.folder, head, "status", "absent")
    assert unknown.end() == 2
    assert "the cluster has no job of a run 'absent' (there: " in unknown.stderr and "small" in unknown.stderr


@pytest.mark.timeout(600)
def test_submitted_run_equals_a_local_one(submitted: Submitted, tmp_path: Path) -> None:
    assert f"all files: {submitted.run}" in submitted.second.stdout  # an absolute path
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
    assert there["selected"] == here["selected"]
    assert there["trials"] == here["trials"]
    assert there["trials"]["pruned"] >= 1
    counts = [{name: score["test_correct"] for name, score in each["tested"].items()} for each in (there, here)]
    assert counts[0] == counts[1]


@pytest.mark.timeout(600)
def test_ray_job_submit_runs_the_spec(submitted: Submitted, head: Head) -> None:
    """The command is the one in the README."""
    command: list[str | Path] = [
        BIN / "ray", "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime-env.yaml", "--",
        "python", "jobs/run.py", "jobs/quickstart.yaml", *SMALL,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, env=client_environment(head), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{submitted.run} is finished: nothing to do" in done.stdout


def test_both_submits_set_the_same_variables() -> None:
    given = yaml.safe_load((REPOSITORY / "jobs" / "runtime-env.yaml").read_text())
    assert given == {"env_vars": JOB_ENVIRONMENT}


@pytest.mark.timeout(300)
def test_failed_job_gives_its_exit_code(head: Head, tmp_path: Path) -> None:
    done = run(tmp_path, head, "submit", QUICKSTART, "--name", "unwritable", "--storage", "/proc/nowhere")
    assert done.end() == 6, done.stdout + done.stderr
    assert "/proc/nowhere" in done.stdout and "Traceback" not in done.stdout
    assert "mnist-ray-unwritable failed (exit code 6)" in done.stderr
    assert "exit code 6" in run(tmp_path, head, "status").stdout


@pytest.mark.timeout(300)
def test_mistake_is_not_submitted(head: Head, tmp_path: Path) -> None:
    done = run(tmp_path, head, "submit", QUICKSTART, "--set", "retrain.workers=9", "--name", "mistake")
    assert done.end() == 2, done.stdout + done.stderr
    assert "retrain.workers: 9 workers with 1 CPUs each need 9 CPUs, the cluster has 2" in done.stderr
    assert "mistake" not in run(tmp_path, head, "status").stdout


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        (
            {"RAY_AUTH_TOKEN": "of-another-cluster-0123456789abcdef0123456789abcdef"},
            "and the one on this machine is not valid for it",
        ),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "and /nowhere is missing"),
        ({"RAY_AUTH_MODE": "disabled"}, "which this machine has but does not send: export RAY_AUTH_MODE=token"),
    ],
)
def test_token_error_names_the_fault(head: Head, tmp_path: Path, environment: dict[str, str], fault: str) -> None:
    done = run(tmp_path, head, "submit", QUICKSTART, "--name", "intruder", **environment)
    assert done.end() == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"RAY_ADDRESS={head.dashboard}: the cluster requires a token, {fault}" in done.stderr


# --- fetching ------------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a run's folder that are not disposable."""
    disposable = {"leases", "checkpoints", "ray"}
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in disposable
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.timeout(300)
def test_both_ways_fetch_the_same(submitted: Submitted, head: Head, tmp_path: Path) -> None:
    fetched = run(tmp_path, head, "fetch", "small")
    assert fetched.end() == 0, fetched.stdout + fetched.stderr
    assert f"small is fetched through {head.dashboard}" in fetched.stderr
    assert "verdict:" in fetched.stdout and f"all files: {tmp_path / 'results' / 'small'}" in fetched.stdout
    here = content_of(tmp_path / "results" / "small")
    assert here == content_of(submitted.run)  # the record, and the files exported here from it
    assert {"record/000001.json", "results.csv", "report.html", "model/model.safetensors"} <= set(here)
    assert not list((tmp_path / "results").glob(".*"))
    storage = ("--storage", submitted.run.parent)
    again = run(tmp_path, head, "fetch", "small", *storage, RAY_ADDRESS="")  # over the earlier copy, without a cluster
    assert again.end() == 0, again.stderr
    assert content_of(tmp_path / "results" / "small") == here
    assert "fetch" not in run(tmp_path, head, "status").stdout
    own = run(tmp_path, head, "fetch", "small", *storage, "--to", submitted.run.parent)
    assert own.end() == 2
    assert "is not a copy" in own.stderr
    absent = run(tmp_path, head, "fetch", "absent")
    assert absent.end() == 2
    assert "no job there tells the storage of the run 'absent'" in absent.stderr and "--storage" in absent.stderr


# --- secrets, the study ---------------------------------------------------------------------------------------------


def test_secrets_stay_on_this_machine(submitted: Submitted, head: Head) -> None:
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        listed = answer.read()
    assert b"mnist-ray-small@2" in listed and b"mnist_ray_spec_sha256" in listed
    assert CANARY.encode() not in listed
    files = [path for path in head.folder.rglob("*") if path.is_file()]  # uploads, logs, results
    assert any(path.name == "job-driver-mnist-ray-small.log" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


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


def test_optuna_dashboard_shows_the_study(dashboard: str) -> None:
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
