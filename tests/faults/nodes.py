"""A real Ray cluster of several nodes, all on this machine, that tests take nodes from and add nodes to."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mnist_ray.ray_backend.compat import read_token_again
from tests.ray_head import BIN


class Nodes:
    """A head without CPUs, on which the driver is, and nodes with one CPU each."""

    def __init__(self, folder: Path, count: int) -> None:
        self._cluster = _started_cluster(folder)
        self._workers = [self._cluster.add_node(num_cpus=1) for _ in range(count)]
        self.address = self._cluster.address

    def lose_one(self, with_notice: bool = False) -> None:
        """Send SIGKILL to a node's raylet, and with it to all that runs there.

        with_notice: drain the node first, as a cloud does with a spot machine.
        """
        node = self._workers.pop(0)
        if with_notice:
            command: list[str | Path] = [
                BIN / "ray", "drain-node", "--address", self.address, "--node-id", node.node_id,
                "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
                "--deadline-remaining-seconds", "1",
            ]  # fmt: skip
            subprocess.run(command, check=True, timeout=60, capture_output=True)
            time.sleep(1.0)
        self._cluster.remove_node(node, allow_graceful=False)

    def add_one(self, wait: bool = False, without: Sequence[str] = ()) -> None:
        """Start a node, which joins a few seconds later. without: variables to leave out of its environment."""
        with pytest.MonkeyPatch.context() as patch:
            for name in without:
                patch.delenv(name)
            self._workers.append(self._cluster.add_node(num_cpus=1, wait=wait))

    def shutdown(self) -> None:
        self._cluster.shutdown()


def _started_cluster(folder: Path, attempts: int = 3) -> Cluster:
    """Start a head; again where its free port was taken by another test's cluster before Ray got to it."""
    while True:
        try:
            return Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 0, "temp_dir": str(folder), "include_dashboard": False},
            )
        except RuntimeError as error:
            attempts -= 1
            if attempts == 0 or "InvalidAuthToken" not in str(error):
                raise


@contextmanager
def real_nodes(count: int) -> Iterator[Nodes]:
    """Start a cluster with its own folder and token."""
    folder = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))  # short: sockets lie below it
    token = folder / "token"
    token.write_text("a-token-of-the-tests-0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    (folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        read_token_again()  # another file may have joined a cluster in this process
        patch.setenv("RAY_TMPDIR", str(folder))  # where Ray notes the latest cluster, which is nobody else's business
        nodes = Nodes(folder, count)
        try:
            yield nodes
        finally:
            nodes.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
