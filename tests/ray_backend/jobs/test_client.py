"""Connecting to a job server, checking its cluster, the upload, and following a job through faults."""

import json
import logging
import platform
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.runtime_env.packaging import get_uri_for_directory
from ray.job_submission import JobSubmissionClient

from mnist_ray.cli.cluster_commands import exit_code_of
from mnist_ray.cli.main import main
from mnist_ray.errors import InterruptedRunError, SpecError, TrainingFailedError
from mnist_ray.pipeline.provenance import PACKAGE
from mnist_ray.ray_backend.address import shown
from mnist_ray.ray_backend.jobs import client
from mnist_ray.ray_backend.jobs.client import connect, fixed_capacity, token_fault
from mnist_ray.ray_backend.jobs.follow import LogReader, Reconnection, follow, progress_of
from mnist_ray.ray_backend.jobs.job import Job
from mnist_ray.ray_backend.jobs.submit import check_upload, storage_on_cluster, write_upload
from tests.ray_head import REPOSITORY, free_ports

QUICKSTART = REPOSITORY / "jobs" / "quickstart.yaml"
NODE = "e61bcfe1"


class Dashboard:
    """A dashboard with the answers that a test sets."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.address = f"http://127.0.0.1:{server.server_port}"
        self.answers: dict[str, Any] = {
            "/api/version": {"version": "4", "ray_version": ray.__version__},
            "/api/v0/cluster_metadata": {"data": {"pythonVersion": platform.python_version()}},
            "/api/cluster_status": self.status({NODE: f"node_{NODE}"}),
            "/api/v0/nodes": {"data": {"result": {"result": [self.node("ALIVE", 2.0), self.node("DEAD", 64.0)]}}},
            "/api/jobs/": [],
        }

    @staticmethod
    def status(node_types: dict[str, str]) -> dict[str, Any]:
        return {"data": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": node_types}}}}

    @staticmethod
    def node(state: str, cpus: float) -> dict[str, Any]:
        return {"state": state, "resources_total": {"CPU": cpus, "memory": 1e9}}


@pytest.fixture
def without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no token: Ray keeps the first token that it finds for the whole process, and other tests need theirs."""
    monkeypatch.setattr("ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled", lambda _: {})


@pytest.fixture
def dashboard(without_token: None) -> Iterator[Dashboard]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = made.answers.get(self.path.partition("?")[0])
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Dashboard(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


def connection_error(address: str) -> str:
    with pytest.raises(SpecError) as caught:
        connect(address)
    return str(caught.value)


# --- connecting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["HEAD:6379", "ray://HEAD:10001", "http://", "http://HEAD:port", "auto", "file:///x"]
)
def test_wrong_address_is_named(address: str) -> None:
    assert connection_error(address).startswith(f"--address {shown(address)}: is not the http address of a head's")


def test_environment_is_the_default_address(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dashboard.address)
    assert main(["status"]) == 0
    assert f"no mnist_ray jobs on {dashboard.address}" in capsys.readouterr().out
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert main(["status", "--address", f"{dashboard.address}/"]) == 0
    monkeypatch.delenv("RAY_ADDRESS")
    assert main(["status"]) == 2
    assert "--address is missing" in capsys.readouterr().err


def test_status_can_be_a_document(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    """One run that failed by our own exit code; the jobs of others are left out."""
    failed = {
        "type": "SUBMISSION",
        "submission_id": "mnist-ray-small@2",
        "status": "FAILED",
        "entrypoint": "python jobs/run_once.py",
        "start_time": 1000,
        "end_time": 60_000,
        "driver_exit_code": 3,
        "metadata": {"mnist_ray_storage": "/mnt/runs", "mnist_ray_version": "0.1.0"},
    }
    dashboard.answers["/api/jobs/"] = [failed, failed | {"submission_id": "raysubmit_1"}]
    dashboard.answers["/api/jobs/mnist-ray-small@2/logs"] = {
        "logs": "12:00:00 search: 3 of 10 trials were done before\n"
    }
    assert main(["status", "--json", "--address", dashboard.address]) == 0
    found = json.loads(capsys.readouterr().out)
    job = {
        "run": "small",
        "job": "mnist-ray-small@2",
        "state": "failed",
        "since": "1970-01-01T00:01:00+00:00",
        "exit_code": 3,
        "failure": "exit code 3",
        "storage": "/mnt/runs",
        "version": "0.1.0",
    }
    assert found == {"schema_version": 1, "jobs": [job]}
    assert main(["status", "small", "--json", "--address", dashboard.address]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == [job | {"progress": "search, 3 of 10 trials"}]


def test_other_servers_are_refused(dashboard: Dashboard) -> None:
    (port,) = free_ports(1)
    assert "nothing answers there (Connection refused)" in connection_error(f"http://127.0.0.1:{port}")
    assert "nothing answers there (Name or service not known" in connection_error("http://nobody.invalid:8265")
    for answer in (None, b"<html>", ["another"], {"version": "4"}):
        dashboard.answers["/api/version"] = answer
        assert "the server there is not a Ray dashboard" in connection_error(dashboard.address)


def test_silent_server_times_out(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not answer within 0.5 s" in connection_error(f"http://127.0.0.1:{silent.getsockname()[1]}")
    with socket.create_server(("127.0.0.1", 0)) as rude:
        threading.Thread(target=lambda: rude.accept()[0].close(), daemon=True).start()
        assert "the server there is not a Ray dashboard" in connection_error(
            f"http://127.0.0.1:{rude.getsockname()[1]}"
        )


@pytest.mark.usefixtures("without_token")
def test_password_is_not_shown() -> None:
    (port,) = free_ports(1)
    message = connection_error(f"http://someone:secret@127.0.0.1:{port}")
    assert message.startswith(f"--address http://127.0.0.1:{port}: nothing answers")
    assert "secret" not in message


def test_ray_has_the_overridden_methods() -> None:
    """Ray would silently ignore an override of a method that it has no more."""
    for name in ("_check_connection_and_version", "_do_request", "_raise_error"):
        assert callable(getattr(JobSubmissionClient, name)), name


# --- the cluster -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/api/version", {"ray_version": "2.59.1"}, f"the cluster has Ray 2.59.1 (here {ray.__version__}): install"),
        ("/api/v0/cluster_metadata", {"data": {"pythonVersion": "3.9.1"}}, "the cluster has Python 3.9 (here 3."),
        ("/api/v0/nodes", {"data": {"result": {"result": []}}}, "the cluster has no CPUs for trainings"),
    ],
)
def test_unfit_cluster_is_refused(
    dashboard: Dashboard, path: str, answer: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.answers[path] = answer
    assert main(["submit", str(QUICKSTART), "--address", dashboard.address]) == 2
    assert message in capsys.readouterr().err


def test_local_submit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(QUICKSTART), "--local"]) == 2
    assert "mnist-ray run --local" in capsys.readouterr().err


def test_spec_is_checked_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(QUICKSTART), "--set", "search.num_trials=0", "--address", "http://127.0.0.1:1"]) == 2
    assert "search.num_trials" in capsys.readouterr().err


def test_autoscaled_cluster_has_no_capacity(dashboard: Dashboard) -> None:
    capacity = fixed_capacity(connect(dashboard.address))
    assert capacity is not None
    assert (capacity.cpus, capacity.gpus) == (2, 0)  # of the living one
    for status in (Dashboard.status({NODE: "worker"}), {"data": {"clusterStatus": None}}, None):
        dashboard.answers["/api/cluster_status"] = status
        assert fixed_capacity(connect(dashboard.address)) is None


# --- the upload ---------------------------------------------------------------------------------------------------


def test_upload_holds_the_package(tmp_path: Path) -> None:
    uris = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write_upload(folder, "job.yaml", "name: x\n")
        uris.add(get_uri_for_directory(str(folder), include_gitignore=True))
    assert len(uris) == 1
    assert {path.name for path in folder.iterdir()} == {"mnist_ray", "job.yaml"}
    sent = {path.relative_to(folder) for path in (folder / "mnist_ray").rglob("*") if path.is_file()}
    assert sent == {
        path.relative_to(PACKAGE.parent)
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    check_upload(folder)
    with pytest.raises(SpecError, match=r"MB packed, Ray takes 0\.0 MB"):
        check_upload(folder, limit_bytes=1000)


@pytest.mark.parametrize(
    ("storage", "expected"),
    [("results", "~/mnist_ray/results"), ("/mnt/runs", "/mnt/runs"), ("~/runs", "~/runs"), ("s3://a/b", "s3://a/b")],
)
def test_relative_storage_lies_below_home(storage: str, expected: str) -> None:
    assert storage_on_cluster(storage) == expected


# --- following -----------------------------------------------------------------------------------------------------


def details(**facts: Any) -> dict[str, Any]:
    known = {"type": "SUBMISSION", "submission_id": "mnist-ray-x", "entrypoint": "", "start_time": 1000}
    return {**known, "status": "RUNNING", **facts}


HEAD_OF_LOG = "2026 INFO -- Runtime env is setting up.\nRunning entrypoint for job mnist-ray-x: python\n"


def test_lines_are_written_once() -> None:
    written: list[str] = []
    reader = LogReader(written.append)
    for log in (
        "2026 INFO",
        HEAD_OF_LOG,
        f"{HEAD_OF_LOG}one\ntw",
        f"{HEAD_OF_LOG}one\ntw",
        f"{HEAD_OF_LOG}one\ntwo\nth",
    ):
        reader.update(log, is_whole=False)
    assert written == ["one\n", "two\n"]
    reader.update(f"{HEAD_OF_LOG}one\ntwo\nthree", is_whole=True)
    assert written[2:] == ["three"]


def test_missing_job_ends_following(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is missing first, as on a busy node, which is no end; then the cluster was started anew."""
    caplog.set_level(logging.INFO)
    written: list[str] = []
    changes: Iterator[dict[str, Any]] = iter(
        [
            {"/api/jobs/mnist-ray-x/logs": {"logs": f"{HEAD_OF_LOG}one\n"}},
            {"/api/jobs/mnist-ray-x": None},
        ]
    )
    monkeypatch.setattr("time.sleep", lambda _: dashboard.answers.update(next(changes)))
    dashboard.answers["/api/jobs/mnist-ray-x"] = details()
    with pytest.raises(InterruptedRunError, match="the cluster was restarted: the same submit continues"):
        follow(connect(dashboard.address), "mnist-ray-x", written.append)
    assert written == ["one\n"]
    lost, found = caplog.messages
    assert "404" in lost and "connected again" in found


def test_end_shows_without_a_log(dashboard: Dashboard) -> None:
    dashboard.answers["/api/jobs/mnist-ray-x"] = details(status="FAILED", end_time=2000, message="node\n died")
    job = follow(connect(dashboard.address), "mnist-ray-x", print)
    assert (job.state, job.message, job.since_s) == ("failed", "node died", 2.0)


def test_lost_connection_is_retried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One message, pauses that grow, and an end after an hour."""
    caplog.set_level(logging.INFO)
    clock = [0.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    reconnection = Reconnection("mnist-ray-x")

    def lose_for_ever() -> None:
        while True:
            reconnection.pause(SpecError("no answer"))

    with pytest.raises(
        InterruptedRunError, match="no answer for 60 minutes: the same command follows mnist-ray-x again"
    ):
        lose_for_ever()
    assert pauses[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert 3600 <= clock[0] < 3700
    (message,) = caplog.messages
    assert message == "no answer; mnist-ray-x keeps running; retrying for 60 minutes"


@pytest.mark.parametrize(
    ("state", "exit_code", "expected"),
    [("succeeded", 0, 0), ("failed", 2, 2), ("failed", 3, 3), ("failed", 7, 7), ("stopped", None, InterruptedRunError)]
    + [("failed", code, TrainingFailedError) for code in (None, 1, 127, -9)],
)
def test_command_exits_as_the_job(state: str, exit_code: int | None, expected: Any) -> None:
    job = Job(
        id="mnist-ray-x", run="x", number=1, state=state, since_s=0.0, exit_code=exit_code, message="its node died"
    )
    if isinstance(expected, int):
        assert exit_code_of(job) == expected
    else:
        with pytest.raises(expected, match="its node died" if state == "failed" else "was stopped"):
            exit_code_of(job)


def test_interrupted_follow_leaves_the_job(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    dashboard.answers["/api/jobs/"] = [details()]
    dashboard.answers["/api/jobs/mnist-ray-x"] = details()
    dashboard.answers["/api/jobs/mnist-ray-x/logs"] = {"logs": HEAD_OF_LOG}
    assert main(["logs", "x", "--follow", "--address", dashboard.address]) == 5
    message = capsys.readouterr().err
    assert (
        "mnist-ray-x keeps running: 'mnist-ray logs x --follow' follows it again, 'mnist-ray stop x' stops it"
        in message
    )


def test_unset_mode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is there but not sent is no missing one."""
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert f"{token} is missing" in token_fault(was_sent=False)
    token.write_text("0" * 64)
    assert token_fault(was_sent=False).endswith("this machine has but does not send: export RAY_AUTH_MODE=token")
    assert "is not valid for it" in token_fault(was_sent=True)


@pytest.mark.usefixtures("without_token")
def test_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    message = connection_error("http://head.invalid:8265")
    assert "the proxy in $http_proxy" in message and "tunnel" not in message


def test_variable_is_named_as_the_origin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "HEAD:6379")
    assert main(["status"]) == 2
    assert capsys.readouterr().err.startswith("mnist-ray: RAY_ADDRESS=HEAD:6379: is not the http address")


def test_missing_python_is_named() -> None:
    job = Job(id="mnist-ray-x", run="x", number=1, state="failed", since_s=0, exit_code=127, message="exit code 127")
    with pytest.raises(TrainingFailedError, match="the head has no 'python' on its path"):
        exit_code_of(job)


def test_progress_is_read_from_the_log() -> None:
    log = """results go to /x
12:55:18 search: 0 of 3 trials
12:55:53 search: trial-0000 epoch 1 val_loss 1.6881
12:55:58 search: trial-0000 complete after 6 epochs val_loss 0.1954, best so far 0.1954 (trial-0000)
12:56:02 search: trial-0001 pruned after 1 epochs val_loss 1.9, best so far 0.1954 (trial-0000)
"""
    assert progress_of("") == ""
    assert progress_of(log) == "search, 2 of 3 trials, best so far 0.1954 (trial-0000)"
    again = (
        log + "12:57:00 search: 2 of 3 trials were done before\n12:57:09 search: trial-0002 complete after 6 epochs\n"
    )
    assert progress_of(again).startswith("search, 3 of 3 trials")
