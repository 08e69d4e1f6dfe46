"""The wait for the nodes of a Slurm job ends with the process that starts them, whatever listens at the address."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_head import REPOSITORY

SCRIPT = REPOSITORY / "cluster" / "slurm" / "wait_for_nodes.py"


def wait_for_nodes(port: int, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the script; with Ray's own limits it would take minutes."""
    command: list[str | Path] = [sys.executable, SCRIPT, f"127.0.0.1:{port}", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("is_strange", [False, True], ids=["nothing", "a stranger"])
def test_wait_ends_with_the_head(is_strange: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger, subprocess.Popen(["sleep", "3"]) as head:
        port = stranger.getsockname()[1] if is_strange else 1
        done = wait_for_nodes(port, "--while-running", str(head.pid))
    assert done.returncode == 4
    assert "a node of Ray did not start (0 of 2 are there): see above" in done.stderr


def test_wait_has_a_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        done = wait_for_nodes(stranger.getsockname()[1], "--seconds", "2")
    assert done.returncode == 4
    assert "0 of 2 nodes joined within 2 s" in done.stderr
