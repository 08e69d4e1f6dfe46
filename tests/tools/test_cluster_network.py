"""The programs that make machines of namespaces: `--help` starts nothing, and SIGTERM leaves nothing."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_head import REPOSITORY

PROGRAM = """
import sys, time
from pathlib import Path
from tools.cluster_network.machines import network

with network(Path(sys.argv[1]), ["one"]) as machines:
    machines["one"].start("sleep", "300")
    print("up", flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("module", ["tools.cluster_network", "tools.cluster_network.autoscaling"])
def test_help_starts_nothing(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage:")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
def test_terminated_program_leaves_no_namespace(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert f"mr{process.pid}-" not in listed
