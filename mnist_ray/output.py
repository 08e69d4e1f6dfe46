"""Standard output and standard error, whose failure does not end the work: a closed pipe, a full disk behind a log."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class GuardedStream:
    """A text stream whose writes never fail; what could not be written is lost, and the last reason is kept."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        with self._failures_kept():
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._failures_kept():
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def finish(self) -> None:
        """Flush; let what is left go nowhere, or Python's own flush at the end would change the exit code."""
        self.flush()
        if self.failure is not None and self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    @property
    def is_cut(self) -> bool:
        """Whether output is lost that somebody waits for; the reader of a closed pipe does not."""
        return self.failure is not None and self.failure.errno != errno.EPIPE

    @contextlib.contextmanager
    def _failures_kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
        except ValueError:
            if self._stream is None or not self._stream.closed:
                raise
            self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))


@contextlib.contextmanager
def guarded_output() -> Iterator[GuardedStream]:
    """Guard both streams while the block lasts, and yield standard output."""
    for number in range(3):
        # Otherwise the next file that is opened gets the number of a closed stream, and takes in what others print.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    output, errors = (GuardedStream(stream) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    try:
        yield output
    finally:
        output.finish()
        errors.finish()
        sys.stdout, sys.stderr = before
