"""The entry point for schedulers that start failed jobs again: a mistake ends as stopped, anything else as it is."""

import os
import subprocess
import time

import pytest

from tests.ray_head import BIN, REPOSITORY, Head


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "ended"),
    [
        (["jobs/nowhere.yaml"], "was stopped"),
        (["--nonsense"], "was stopped"),
        (["jobs/quickstart.yaml", "--local"], "failed"),
    ],
)
def test_pointless_job_is_stopped(head: Head, arguments: list[str], ended: str) -> None:
    """The third case fails for want of a folder, which another try may find."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(head.folder / "client"), "RAY_ADDRESS": head.dashboard, **head.environment}
    name = f"once-{time.time_ns()}"

    def ray_job(*words: str) -> str:
        done = subprocess.run(
            [BIN / "ray", "job", *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    storage = [] if "--nonsense" in arguments else ["--storage", "/proc/nowhere"]
    command = ["python", "jobs/run_once.py", *arguments, *storage]
    ray_job("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--", *command)
    deadline = time.monotonic() + 180
    while not any(word in (status := ray_job("status", name)) for word in ("was stopped", "failed", "succeeded")):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert ended in status, ray_job("logs", name)
