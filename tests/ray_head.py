"""One real Ray head for all tests that run jobs: its own ports, its own folder, token authentication on.

A plugin rather than a conftest, because folders beside one another share it.
"""

import contextlib
import os
import random
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

import pytest

# Ray reads it once, when it is imported, which some tests do long before they need a cluster.
os.environ["RAY_AUTH_MODE"] = "token"

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Head:
    address: str  # of the cluster, for `ray.init`
    dashboard: str  # of its job server, for `ray job submit`
    environment: dict[str, str]  # what a client needs to get in
    folder: Path
    pid: int


def free_ports(count: int) -> list[int]:
    """Of those that neither the system gives out by itself nor Ray to its workers: they may take them first."""
    sockets: list[socket.socket] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        if len(sockets) < count:
            with contextlib.suppress(OSError):
                sockets.append(socket.create_server(("127.0.0.1", port)))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))  # short: sockets lie below it
    token = folder / "token"
    token.write_text("a-token-of-the-tests-0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    gcs, dashboard, client, agent, metrics, environment_agent = free_ports(6)
    command: list[str | Path] = [
        BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true",
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
        f"--runtime-env-agent-port={environment_agent}", f"--temp-dir={folder / 'ray'}",
    ]  # fmt: skip
    environment = {**os.environ, **secret, "OMP_WAIT_POLICY": "PASSIVE"}
    environment["HOME"] = str(folder)
    environment["PATH"] = f"{BIN}:{environment['PATH']}"  # as from an activated environment: jobs start "python"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    address = f"127.0.0.1:{gcs}"
    try:
        _wait_for(address, f"http://127.0.0.1:{dashboard}", {**os.environ, **secret}, folder / "log")
        yield Head(address, f"http://127.0.0.1:{dashboard}", secret, folder, process.pid)
    finally:
        for pid in [*descendants(process.pid), process.pid]:  # SIGTERM to the head alone takes half a minute
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, dashboard: str, environment: dict[str, str], log: Path) -> None:
    """Until the cluster and its job server answer; the job server is the later one."""
    command: list[str | Path] = [BIN / "ray", "health-check", "--address", address]
    submitted: list[str | Path] = [BIN / "ray", "job", "list", "--address", dashboard]
    for _ in range(30):
        answers = (
            subprocess.run(each, env=environment, capture_output=True, timeout=60) for each in (command, submitted)
        )
        if all(answer.returncode == 0 for answer in answers):
            return
        time.sleep(1)
    raise RuntimeError(f"the head did not start:\n{log.read_text()}")


def descendants(ancestor: int) -> dict[int, str]:
    """The command lines of the processes below one, by process id."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines()]
    commands = {int(pid): " ".join(command) for pid, _, *command in lines}
    children: dict[int, list[int]] = {}
    for pid, parent, *_ in lines:
        children.setdefault(int(parent), []).append(int(pid))
    found: dict[int, str] = {}
    waiting = list(children.get(ancestor, []))
    while waiting:
        child = waiting.pop()
        found[child] = commands[child]
        waiting += children.get(child, [])
    return found


@pytest.fixture
def joined(head: Head, monkeypatch: pytest.MonkeyPatch) -> str:
    """The head's address, with the token in this process's environment."""
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    return head.address
