"""A cluster of this machine alone: its start."""

import subprocess
import sys
import tempfile

# In a process of its own: others of this test session may have a cluster.
PROGRAM = """
import sys
from pathlib import Path

from ray._private.node import Node

from mnist_ray.ray_backend.cluster import NUM_LOCAL_STARTS, connected

start, nodes = Node.start_ray_processes, []


def fail_at_first(node):
    nodes.append(node)
    if len(nodes) < NUM_LOCAL_STARTS:
        raise Exception("the node timed out")
    start(node)


Node.start_ray_processes = fail_at_first
with connected("local", Path(sys.argv[1]), verbose=False):
    print("alive", [node.any_processes_alive() for node in nodes])
"""


def test_failed_local_start_is_repeated() -> None:
    with tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp") as folder:  # sockets lie in it
        done = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, check=True)
    assert "alive [False, False, True]" in done.stdout
    assert done.stderr.count("is started again: the node timed out") == 2
