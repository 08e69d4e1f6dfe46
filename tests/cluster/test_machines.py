"""The scripts that start a head and join workers by hand, with two real nodes on this machine."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ray_head import BIN, REPOSITORY, descendants

SCRIPTS = REPOSITORY / "cluster" / "machines"


@dataclass(frozen=True)
class Cluster:
    """A head and a node, with ports in a block that begins at `base`."""

    folder: Path
    base: int
    pids: dict[str, int]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.base}"

    @property
    def dashboard_port(self) -> int:
        return self.base + 10

    @property
    def token(self) -> Path:
        return self.folder / "token"

    def environment(self, **changes: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            **changes,
        }


def free_block(count: int) -> int:
    """Return the first of `count` ports in a row that are all free."""
    for first in range(23_000, 32_000, 100):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise RuntimeError("no ports are free")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a head without work and one node with two CPUs, each with its own ports."""
    folder = Path(tempfile.mkdtemp(prefix="mrm-", dir="/tmp"))  # short: sockets lie below it
    base = free_block(80)
    made = Cluster(folder, base, {})
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, script: str, *arguments: str, **settings: str) -> None:
        with (folder / f"{name}.log").open("w") as log:
            options = ["--block", "--node-ip-address=127.0.0.1", "--num-gpus=0"]
            command: list[str | Path] = [SCRIPTS / script, *arguments, *options]
            process = subprocess.Popen(command, env=made.environment(**settings), stdout=log, stderr=log, cwd=folder)
        started.append(process)
        made.pids[name] = process.pid

    try:
        start(
            "head", "head.sh", "--num-cpus=0", f"--temp-dir={folder / 'ray'}",
            PORT_BASE=str(base), WORKER_PORTS=f"{base + 20}-{base + 39}", DASHBOARD_PORT=str(base + 10),
            CLIENT_PORT=str(base + 11),
        )  # fmt: skip
        wait_for_nodes(made, 1)
        ports = {"PORT_BASE": str(base + 12), "WORKER_PORTS": f"{base + 40}-{base + 59}"}
        start("node", "join.sh", made.address, "--num-cpus=2", **ports)
        wait_for_nodes(made, 2)
        yield made
    finally:
        for process in started:
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


COUNT = "import ray; ray.init(address=%r, logging_level=40); print(sum(node['Alive'] for node in ray.nodes()))"


def counted_nodes(cluster: Cluster, **changes: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", COUNT % cluster.address]
    environment = cluster.environment(RAY_AUTH_MODE="token", **changes)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def wait_for_nodes(cluster: Cluster, count: int) -> None:
    output = ""
    for _ in range(30):
        if (cluster.token).exists():
            done = counted_nodes(cluster)
            if done.stdout.strip() == str(count):
                return
            output = done.stdout + done.stderr
        time.sleep(1)
    logs = "\n".join(log.read_text() for log in cluster.folder.glob("*.log"))
    raise RuntimeError(f"{count} nodes did not come: {output}\n{logs}")


def test_token_is_private(cluster: Cluster) -> None:
    assert cluster.token.stat().st_mode & 0o777 == 0o600
    assert len(cluster.token.read_text()) == 64
    assert "A token was made" in (cluster.folder / "head.log").read_text()
    assert cluster.token.read_text() not in "".join(log.read_text() for log in cluster.folder.glob("*.log"))


def test_wrong_token_is_refused(cluster: Cluster) -> None:
    wrong = cluster.folder / "wrong"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    refused = counted_nodes(cluster, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode != 0
    assert "2" not in refused.stdout


def test_doctor_finds_the_joined_node(cluster: Cluster) -> None:
    """The doctor joins, reads every node's packages, and counts the CPUs, of which the head has none."""
    command = [sys.executable, "-m", "mnist_ray.cli", "doctor", "--address", cluster.address]
    environment = cluster.environment(RAY_AUTH_MODE="token", PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    (line,) = [line for line in done.stdout.splitlines() if "cluster" in line]
    assert line.startswith("ok") and "2 CPUs, 0 GPUs" in line, done.stdout + done.stderr


def test_dashboard_listens_on_loopback(cluster: Cluster) -> None:
    lines = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout.splitlines()
    hosts = {line.split()[3].rpartition(":")[0] for line in lines if f":{cluster.dashboard_port} " in line}
    assert hosts == {"127.0.0.1"}


def open_ports(cluster: Cluster) -> set[int]:
    """Return the ports at which the processes of head and node listen."""
    pids = {pid for first in cluster.pids.values() for pid in [first, *descendants(first)]}
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line.split() for line in lines if any(f"pid={pid}," in line for pid in pids)]
    return {int(words[3].rpartition(":")[2]) for words in ours}


def test_only_named_ports_are_open(cluster: Cluster) -> None:
    base = cluster.base
    of_head, of_node = range(base, base + 6), range(base + 13, base + 18)  # without metrics: base + 6 and base + 18
    dashboard_and_client, of_workers = (base + 10, base + 11), range(base + 20, base + 60)
    ports = open_ports(cluster)
    assert ports <= {*of_head, *of_node, *dashboard_and_client, *of_workers}
    assert ports >= {*of_head, *of_node, *dashboard_and_client}


def host_of(port: int) -> str:
    """Return the host address of an open port; Ray's runtime environment agent chooses its own."""
    lines = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout.splitlines()
    (host,) = [line.split()[3].rpartition(":")[0] for line in lines if f":{port} " in line]
    return host


def as_stranger(cluster: Cluster, *arguments: str, token: str = "") -> Any:
    """Return the answers to requests with a token or none; tools/cluster_network makes them from another machine."""
    environment = cluster.environment(PYTHONPATH=str(REPOSITORY), STRANGER_TOKEN=token, RAY_AUTH_TOKEN_PATH="")
    command = [sys.executable, "-m", "tools.cluster_network.stranger", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def job_for_agent(cluster: Cluster, mark: Path) -> list[str]:
    body = json.dumps({"entrypoint": f"touch {mark}"})
    url = f"http://127.0.0.1:{cluster.base + 5}/api/job_agent/jobs/"
    return ["POST", url, base64.b64encode(body.encode()).decode()]


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_calls_without_the_token_are_refused(cluster: Cluster, token: str) -> None:
    base = cluster.base
    ports = [f"127.0.0.1:{base + offset}" for offset in (0, 1, 2, 4, 11)]  # state, raylet, objects, agent, Ray Client
    for port, answers in as_stranger(cluster, "every", *ports, token=token).items():
        assert set(answers.values()) == {"UNAUTHENTICATED"}, port
    mark = cluster.folder / "mark of a stranger"
    environments = ["POST", f"http://{host_of(base + 3)}:{base + 3}/get_or_create_runtime_env", ""]
    answers = as_stranger(cluster, "some", json.dumps([job_for_agent(cluster, mark), environments]), token=token)
    assert [answer[:3] for answer in answers] == ["403" if token else "401"] * 2, answers
    assert not mark.exists()
    assert counted_nodes(cluster).stdout.strip() == "2"


def test_calls_with_the_token_are_answered(cluster: Cluster) -> None:
    mark = cluster.folder / "mark"
    nodes = [cluster.address, "ray.rpc.NodeInfoGcsService", "GetAllNodeInfo", {}]
    requests = json.dumps([nodes, job_for_agent(cluster, mark)])
    of_state, of_agent = as_stranger(cluster, "some", requests, token=cluster.token.read_text())
    assert of_state.startswith("OK") and of_agent.startswith("200")
    for _ in range(300):
        if mark.exists():
            return
        time.sleep(0.1)
    raise AssertionError("the job has not run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name the head"), (["--num-cpus=1"], "name the head"), (["10.0.0.1"], "copy it from the head")],
)
def test_mistake_names_the_remedy(tmp_path: Path, arguments: list[str], message: str) -> None:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")}
    command: list[str | Path] = [SCRIPTS / "join.sh", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_missing_ray_names_the_remedy() -> None:
    for script in ("head.sh", "join.sh"):
        command = ["/bin/bash", str(SCRIPTS / script), "somewhere"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and "no 'ray' on the path" in done.stderr


@pytest.mark.parametrize(("switch", "expected"), [("0", "0 -1 -1"), ("1", "unset unset unset")])
def test_metrics_have_one_switch(switch: str, expected: str) -> None:
    names = ("RAY_enable_metrics_collection", "AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
    shown = " ".join(f"${{{name}:-unset}}" for name in names)
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/nonexistent", "METRICS": switch}
    command = ["/bin/bash", "-c", f"source {SCRIPTS}/settings.sh && echo {shown}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == expected
