"""Files from web servers into a folder: by one process at a time, whole, verified, and soon or not at all."""

import contextlib
import fcntl
import hashlib
import os
import queue
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# A mirror must deliver this much on average over the last `timeout_s`, from the first on: one that trickles, or
# begins to after nine tenths of a file, is given up 20 s later and never asked again, so that a clear error comes
# within a minute, while a line of one megabit a second still gets MNIST's 12 MB.
MIN_BYTES_PER_S = 100 * 1024
MAX_FILE_BYTES = 64 * 2**20  # the largest file has 26 MB; a wrong server must not fill disk and memory
CHUNK_BYTES = 256 * 1024

LOCK_NAME = ".download.lock"
PARTIAL_SUFFIX = ".partial"

# Who has the turn asks the next mirror after `timeout_s` at the latest, which the others see. After so many times
# that they no longer wait for it: it was stopped, or hangs in a disk.
PATIENCE = 2.5
POLL_S = 0.05


class DownloadError(Exception):
    """A file could not be had. The text has one line for each address that was tried."""


class _MirrorError(Exception):
    """One address did not give the file; the next one may."""


class _SlowMirrorError(_MirrorError):
    """It also cost the time that there is for it: it is not asked for the next file."""


@dataclass(frozen=True)
class Wanted:
    """A file to download, and the only content that is accepted for it."""

    name: str
    sha256: str
    addresses: Callable[[], Sequence[str]]  # only asked for by who downloads


def download_in_turn(folder: Path, find_missing: Callable[[], Sequence[Wanted]], timeout_s: float) -> None:
    """Download into `folder` what `find_missing` still finds missing once it is this process' turn.

    A failure is written into the lock file and is the failure of everybody who waited for it meanwhile:
    otherwise eight processes without a network would time out one after the other. `timeout_s` bounds each wait
    for a mirror's next bytes, name look-up and connecting included; `MIN_BYTES_PER_S` holds after the first
    `timeout_s`. Raises DownloadError, OSError.
    """
    with (folder / LOCK_NAME).open("a") as lock:
        failure_seen = _last_failure(folder)
        _wait_for_turn(lock, folder, PATIENCE * timeout_s)
        missing = find_missing()
        failure = _last_failure(folder)
        if missing and failure and failure != failure_seen:
            raise DownloadError(failure)
        _remove_leftovers(folder)
        given_up: dict[str, str] = {}
        try:
            for file in missing:
                _download(file, folder, timeout_s, given_up)
        except DownloadError as error:
            tried = f"  (tried by process {os.getpid()} at {time.strftime('%Y-%m-%d %H:%M:%S%z')})"
            (folder / LOCK_NAME).write_text(f"{error}\n{tried}", encoding="utf-8")
            raise


def _last_failure(folder: Path) -> str:
    return (folder / LOCK_NAME).read_text(encoding="utf-8", errors="replace")  # its writer may have been killed


def _wait_for_turn(lock: IO[str], folder: Path, patience_s: float) -> None:
    """Take the lock. Raises DownloadError where its holder has shown no sign of life for `patience_s`."""
    seen, seen_s = _partial_files(folder), time.monotonic()
    while not _has_locked(lock):
        time.sleep(POLL_S)
        found = _partial_files(folder)
        if found != seen:
            seen, seen_s = found, time.monotonic()
        elif time.monotonic() - seen_s > patience_s:
            written = ", ".join(seen) or folder / LOCK_NAME
            raise DownloadError(
                f"the process that downloads has been silent for {patience_s:g} s: it was stopped or hangs. It has "
                f"{written} open (a number in the name is its process id): end it, and run the same command again"
            )


def _has_locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(
            lock, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # ends with the open file, so with the process, however it ends
    except BlockingIOError:
        return False
    return True


def _partial_files(folder: Path) -> dict[str, int]:
    """When each was last written: every chunk counts, and every mirror that is asked begins a new one."""
    found = {}
    for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            found[str(path)] = path.stat().st_mtime_ns
    return found


def _remove_leftovers(folder: Path) -> None:
    """Only the holder of the lock writes partial files: those there are of processes that were killed."""
    for leftover in folder.glob(f".*{PARTIAL_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _download(file: Wanted, folder: Path, timeout_s: float, given_up: dict[str, str]) -> None:
    """Put the file into the folder from the first mirror that has it. Raises DownloadError, OSError.

    given_up: the mirrors that are not asked any more, and why; added to.
    """
    failures = []
    for address in file.addresses():
        mirror = address.rpartition("/")[0]
        if mirror in given_up:
            failures.append(f"\n  {address}: not asked again ({given_up[mirror]})")
            continue
        try:
            return _download_from(address, file, folder, timeout_s)
        except _MirrorError as error:
            failures.append(f"\n  {address}: {error}")
            if isinstance(error, _SlowMirrorError):
                given_up[mirror] = str(error)
    raise DownloadError(f"{file.name} could not be downloaded:{''.join(failures)}")


def _download_from(address: str, file: Wanted, folder: Path, timeout_s: float) -> None:
    """Stream beside the target, verify, flush, rename; nothing stays behind on failure.

    Raises _MirrorError for what the server does, OSError for what the disk does.
    """
    partial = folder / f".{file.name}.{os.getpid()}{PARTIAL_SUFFIX}"
    digest, start, num_bytes = hashlib.sha256(), b"", 0
    try:
        with partial.open("wb") as target:
            for chunk in _body(address, timeout_s):
                target.write(chunk)
                digest.update(chunk)
                start, num_bytes = start or chunk[:15], num_bytes + len(chunk)
            target.flush()
            os.fsync(target.fileno())
        if digest.hexdigest() != file.sha256:
            raise _MirrorError(
                f"what it sent, {num_bytes} bytes that begin with {start!r}, has SHA-256 {digest.hexdigest()[:12]}, "
                f"expected {file.sha256[:12]}"
            )
        partial.replace(folder / file.name)
    finally:
        partial.unlink(missing_ok=True)


def _body(address: str, timeout_s: float) -> Iterator[bytes]:
    """What the server sends, piece by piece. Raises _MirrorError: refused, cut, silent, slow or endless.

    A thread does the waiting, because a socket timeout bounds neither the name look-up, nor a header that
    comes byte by byte, nor connecting: each of a host's addresses gets the whole of it, and S3 has eight.
    """
    arrived: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    given_up = threading.Event()
    threading.Thread(target=_receive, args=(address, timeout_s, arrived, given_up), daemon=True).start()
    pace = _Pace(timeout_s)
    try:
        while chunk := _next_chunk(arrived, timeout_s):
            pace.check(len(chunk))
            yield chunk
    finally:
        given_up.set()


class _Pace:
    """How much came within the last `window_s`; the first `window_s` are not judged."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._started_s = time.monotonic()
        self._arrivals: deque[tuple[float, int]] = deque()
        self._num_bytes = 0

    def check(self, num_bytes: int) -> None:
        """Count what has just come. Raises _SlowMirrorError if it and what came before it are too little."""
        now_s = time.monotonic()
        self._arrivals.append((now_s, num_bytes))
        self._num_bytes += num_bytes
        while now_s - self._arrivals[0][0] > self._window_s:
            self._num_bytes -= self._arrivals.popleft()[1]
        if now_s - self._started_s > self._window_s and self._num_bytes < self._window_s * MIN_BYTES_PER_S:
            raise _SlowMirrorError(f"too slow, {self._num_bytes} bytes in {self._window_s:g} s")


def _next_chunk(arrived: "queue.SimpleQueue[bytes | Exception]", timeout_s: float) -> bytes:
    """The next bytes, empty at the end. Raises _MirrorError if the server failed or kept silent."""
    try:
        chunk = arrived.get(timeout=timeout_s)
    except queue.Empty:
        raise _SlowMirrorError(f"no answer for {timeout_s:g} s") from None
    if isinstance(chunk, Exception):
        raise _MirrorError(str(chunk) or type(chunk).__name__) from chunk
    return chunk


def _receive(
    address: str,
    timeout_s: float,
    arrived: "queue.SimpleQueue[bytes | Exception]",
    given_up: threading.Event,
) -> None:
    """Pass on what the server sends, then b"" or the exception that ended it. Runs in a thread of its own."""
    request = urllib.request.Request(address, headers={"User-Agent": "mnist_ray"})
    try:
        # The reader gives up after `timeout_s`; twice that only ends the thread that it left behind.
        with urllib.request.urlopen(request, timeout=2 * timeout_s) as response:
            expected_bytes, num_bytes = response.length, 0
            # read1 returns what one receive brought; read would wait until a chunk is full, however long.
            while not given_up.is_set() and (chunk := response.read1(CHUNK_BYTES)):
                arrived.put(chunk)
                num_bytes += len(chunk)
                if num_bytes > MAX_FILE_BYTES:
                    raise ValueError(f"more than {MAX_FILE_BYTES} bytes came, no file of ours is so large")
                if num_bytes == expected_bytes:
                    break
        if expected_bytes is not None and num_bytes < expected_bytes:
            raise ConnectionError(f"cut off after {num_bytes} of {expected_bytes} bytes")
        arrived.put(b"")
    except Exception as error:  # whatever it is, the reader of the queue has to hear of it
        arrived.put(error)
