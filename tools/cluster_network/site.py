"""The machines that are up, as a stranger sees them and as who has the token does."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tools.cluster_network.cluster import Cluster
from tools.cluster_network.machines import waited_for

WRONG = "0" * 64


class Site:
    def __init__(self, made: Cluster) -> None:
        self.made = made
        self.head, self.client = made.machines["head"], made.machines["client"]
        names = [name for name in made.machines if name.startswith(("worker", "spare"))]
        self.workers = [made.machines[name] for name in names if made.machines[name].processes]
        self.token = (self.head.home / ".ray" / "auth_token").read_text()
        (self.client.home / "empty").mkdir(exist_ok=True)

    def strangers(self, *arguments: str, token: str = "") -> Any:
        """From the client machine, with an empty home."""
        changes = {"HOME": str(self.client.home / "empty"), "STRANGER_TOKEN": token}
        words = [sys.executable, "-m", "tools.cluster_network.stranger", *arguments]
        done = self.client.run(*words, changes=changes, timeout_s=300)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout)

    def owners(self, *tries: Sequence[Any]) -> list[str]:
        answers: list[str] = self.strangers("some", json.dumps(tries), token=self.token)
        return answers

    def on_head(self, script: str) -> str:
        begin = f"import ray; ray.init(address='{self.head.address}:6379', namespace='victims', logging_level=40)\n"
        done = self.head.run(sys.executable, "-c", begin + script, changes={"RAY_AUTH_MODE": "token"})
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return done.stdout.strip()

    def alive(self) -> set[str]:
        seen = self.on_head("print(*(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))")
        return set(seen.split())


def is_refused(answer: str) -> bool:
    return answer == "UNAUTHENTICATED" or answer.startswith(("401", "403"))


def holds_soon(holds: Callable[[], bool]) -> bool:
    try:
        waited_for("the control", holds, 20)
    except RuntimeError:
        return False
    return True
