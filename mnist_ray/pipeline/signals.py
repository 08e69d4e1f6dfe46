"""Signals that end a run as Ctrl-C does: at once, in good order, and the same command goes on with it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# SIGTERM: of `kill`, `ray job stop`, Kubernetes, or a machine that is taken away. SIGHUP: a terminal was closed.
# SIGQUIT: Ctrl-\.
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class StopRequested(KeyboardInterrupt):
    """One of the signals of STOPPING."""


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Raise StopRequested in the main thread on a signal, and yield a function that requests it from any thread.

    A signal that is ignored stays so, as `nohup` wants of SIGHUP; SIGTERM is always heeded. Python handles signals in
    the main thread only; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    heed_sigterm()
    for number in STOPPING:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heed_sigterm() -> None:
    """Install the handler of SIGTERM again, after a library has replaced it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StopRequested
