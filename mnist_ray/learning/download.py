"""Files from web servers into a folder: by one process at a time, whole, verified, and soon or not at all."""

import fcntl
import hashlib
import os
import queue
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# A mirror must deliver this much on average, counted from the moment it was asked, once `timeout_s` is
# over: one that trickles is given up after 20 s and the next is asked, so that a clear error comes within
# a minute, while a line of one megabit a second still gets MNIST's 12 MB.
MIN_BYTES_PER_S = 100 * 1024
MAX_FILE_BYTES = 64 * 2**20  # the largest file has 26 MB; a wrong server must not fill disk and memory
CHUNK_BYTES = 256 * 1024

LOCK_NAME = ".download.lock"
PARTIAL_SUFFIX = ".partial"


class NoMirrorLeftError(Exception):
    """No address gave the file. The text has one line for each that was tried."""


class _MirrorError(Exception):
    """One address did not give the file; the next one may."""


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
    `timeout_s`. Raises NoMirrorLeftError, OSError.
    """
    with (folder / LOCK_NAME).open("a") as lock:
        failure_seen = (folder / LOCK_NAME).read_text(encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the open file, so with the process, however that ends
        missing = find_missing()
        failure = (folder / LOCK_NAME).read_text(encoding="utf-8")
        if missing and failure and failure != failure_seen:
            raise NoMirrorLeftError(failure)
        _remove_leftovers(folder)
        try:
            for file in missing:
                _download(file, folder, timeout_s)
        except NoMirrorLeftError as error:
            tried = f"  (tried by process {os.getpid()} at {time.strftime('%Y-%m-%d %H:%M:%S%z')})"
            (folder / LOCK_NAME).write_text(f"{error}\n{tried}", encoding="utf-8")
            raise


def _remove_leftovers(folder: Path) -> None:
    """Only the holder of the lock writes partial files: those there are of processes that were killed."""
    for leftover in folder.glob(f".*{PARTIAL_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _download(file: Wanted, folder: Path, timeout_s: float) -> None:
    """Put the file into the folder from the first mirror that has it. Raises NoMirrorLeftError, OSError."""
    failures = []
    for address in file.addresses():
        try:
            return _download_from(address, file, folder, timeout_s)
        except _MirrorError as error:
            failures.append(f"\n  {address}: {error}")
    raise NoMirrorLeftError(f"{file.name} could not be downloaded:{''.join(failures)}")


def _download_from(address: str, file: Wanted, folder: Path, timeout_s: float) -> None:
    """Stream beside the target, verify, flush, rename; nothing stays behind on failure.

    Raises _MirrorError for what the server does, OSError for what the disk does.
    """
    partial = folder / f".{file.name}.{os.getpid()}{PARTIAL_SUFFIX}"
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as target:
            for chunk in _body(address, timeout_s):
                target.write(chunk)
                digest.update(chunk)
            target.flush()
            os.fsync(target.fileno())
        if digest.hexdigest() != file.sha256:
            raise _MirrorError(f"what it sent has SHA-256 {digest.hexdigest()[:12]}, expected {file.sha256[:12]}")
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
    started_s, num_bytes = time.monotonic(), 0
    try:
        while chunk := _next_chunk(arrived, timeout_s):
            num_bytes += len(chunk)
            elapsed_s = time.monotonic() - started_s
            if elapsed_s > timeout_s and num_bytes < elapsed_s * MIN_BYTES_PER_S:
                raise _MirrorError(f"too slow, {num_bytes} bytes in {elapsed_s:.1f} s")
            yield chunk
    finally:
        given_up.set()


def _next_chunk(arrived: "queue.SimpleQueue[bytes | Exception]", timeout_s: float) -> bytes:
    """The next bytes, empty at the end. Raises _MirrorError if the server failed or kept silent."""
    try:
        chunk = arrived.get(timeout=timeout_s)
    except queue.Empty:
        raise _MirrorError(f"no answer for {timeout_s:g} s") from None
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
