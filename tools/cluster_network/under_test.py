"""The cluster whose security is tested, reached as a stranger and as an owner of the token."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tools.cluster_network.cluster import Cluster
from tools.cluster_network.machines import wait_for

WRONG_TOKEN = "0" * 64


class ClusterUnderTest:
    """A running cluster, with the means to send requests to it and to look at their effects."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.head, self.client = cluster.machines["head"], cluster.machines["client"]
        names = [name for name in cluster.machines if name.startswith(("worker", "spare"))]
        self.workers = [cluster.machines[name] for name in names if cluster.machines[name].processes]
        self.token = (self.head.home / ".ray" / "auth_token").read_text()
        (self.client.home / "empty").mkdir(exist_ok=True)

    def as_stranger(self, *arguments: str, token: str = "") -> Any:
        """Run stranger.py on the client machine with an empty home and return its answers."""
        changes = {"HOME": str(self.client.home / "empty"), "STRANGER_TOKEN": token}
        words = [sys.executable, "-m", "tools.cluster_network.stranger", *arguments]
        done = self.client.run(*words, changes=changes, timeout_s=300)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout)

    def as_owner(self, *requests: Sequence[Any]) -> list[str]:
        """Send requests with the right token and return the answers."""
        answers: list[str] = self.as_stranger("some", json.dumps(requests), token=self.token)
        return answers

    def on_head(self, script: str) -> str:
        """Run a Python script on the head that has joined the cluster; return its output."""
        begin = f"import ray; ray.init(address='{self.head.address}:6379', namespace='victims', logging_level=40)\n"
        done = self.head.run(sys.executable, "-c", begin + script, changes={"RAY_AUTH_MODE": "token"})
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return done.stdout.strip()

    def alive(self) -> set[str]:
        """Return the addresses of all living nodes."""
        return set(self.on_head("print(*(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))").split())


def is_refused(answer: str) -> bool:
    """Report whether an answer refuses a request for its token."""
    return answer == "UNAUTHENTICATED" or answer.startswith(("401", "403"))


def holds_soon(holds: Callable[[], bool]) -> bool:
    """Report whether a condition holds within 20 s."""
    try:
        wait_for("the control", holds, 20)
    except RuntimeError:
        return False
    return True
