"""The death of an agent of Ray ends the run, unless Ray is being shut down."""

import subprocess
import threading

import pytest

from mnist_ray.ray_backend import services
from mnist_ray.ray_backend.services import ServiceWatch


@pytest.mark.parametrize("is_closed", [False, True], ids=["in the run", "at its end"])
def test_only_a_death_in_the_run_ends_it(is_closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    has_left = threading.Event()

    def leave(message: str) -> None:
        said.append(message)
        has_left.set()

    monkeypatch.setattr(services, "_leave", leave)
    monkeypatch.setattr(services, "LOOK_S", 30.0)  # so that the watch waits when the agent ends
    with subprocess.Popen(["sleep", "60"]) as agent:
        watch = ServiceWatch({}, {"the agent": agent.pid})
        watch.start()
        assert not has_left.wait(0.5)
        if is_closed:
            watch.close()
        agent.kill()
        assert is_closed or has_left.wait(10)
        watch.close()
        watch.join(10)
    assert not watch.is_alive()
    assert [text.startswith(f"the agent (process {agent.pid}) has died") for text in set(said)] == [True] * (
        not is_closed
    )
