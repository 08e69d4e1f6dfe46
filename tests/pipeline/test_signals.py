"""Signals end a command in good order, from its first moment on."""

import os
import signal
from collections.abc import Iterator

import pytest

from mnist_ray.cli.main import main
from mnist_ray.pipeline.signals import STOPPING, stoppable
from tests.ray_head import REPOSITORY


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_first_moment_can_be_stopped(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal arrives before the command has imported anything."""
    monkeypatch.setattr("mnist_ray.cli.job_commands._spec_of", lambda _: os.kill(os.getpid(), number))
    assert main(["run", str(REPOSITORY / "jobs" / "quickstart.yaml"), "--local"]) == 5
    assert capsys.readouterr().err == "mnist-ray: interrupted: run the same command again to continue\n"


def test_ignored_hangup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with stoppable():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with stoppable():
        assert [signal.getsignal(number) for number in STOPPING] != before
    assert [signal.getsignal(number) for number in STOPPING] == before
