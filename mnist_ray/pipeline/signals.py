"""SIGTERM ends a run as Ctrl-C does: at once, in good order, and the same command goes on with it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(KeyboardInterrupt):
    """SIGTERM: of `kill`, `ray job stop`, Kubernetes, or a machine that is taken away."""


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Raise StopRequested in the main thread on SIGTERM, and yield a function that requests it from any thread.

    Python handles signals in the main thread only; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    heed_sigterm()
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def heed_sigterm() -> None:
    """Install the handler again, after a library has replaced it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StopRequested
