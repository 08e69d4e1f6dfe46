"""Downloads by pooch: by one process at a time, verified, and within a time that no server can stretch."""

import contextlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pooch
import requests

from mnist_ray.storage.files import read_bounded

# A mirror has to deliver this much on average over the last `timeout_s`, name look-up and connecting included.
# Otherwise the mirror is given up, for the files that follow too, so that a clear error comes within about a minute. A
# line of one megabit a second still gets MNIST's 12 MB.
MIN_BYTES_PER_S = 100 * 1024
TICKS = 20  # measurements of the speed in each `timeout_s`

MAX_FILE_BYTES = 64 * 2**20  # the largest file has 26 MB; a wrong server must not fill disk and memory
CHUNK_BYTES = 16 * 1024

LOCK_NAME = ".download.lock"
FAILURE_NAME = ".download.failure"
WORK_PREFIX = ".download-"  # of a folder, with the process id behind

# The holder of the lock asks the next mirror after little more than `timeout_s`, which writes a file. After this many
# times `timeout_s` without a write the others stop waiting: the holder is suspended, or hangs in a disk.
PATIENCE = 2.5
POLL_S = 0.05


class DownloadError(Exception):
    """A file that could not be downloaded. The text has one line for each address that was tried."""


class _MirrorError(Exception):
    """One address failed; another may not."""


class _SlowMirrorError(_MirrorError):
    """One address failed and took the time that there is: its mirror is not asked for other files."""


@dataclass(frozen=True)
class Download:
    """A file to download, its addresses in order, and the SHA-256 of the only content that is accepted."""

    name: str
    sha256: str
    addresses: Sequence[str]


def download_once(folder: Path, find_missing: Callable[[], Sequence[Download]], timeout_s: float) -> None:
    """Download into `folder` the files that are still missing once this process has the lock.

    The system releases the lock of a process that ends, however it ends. A failure is written beside the lock and is
    the failure of every process that was waiting: otherwise eight processes without a network would time out one
    after the other. timeout_s: the time in which a mirror has to show `MIN_BYTES_PER_S`.
    Raises DownloadError, OSError.
    """
    failure_before = _last_failure(folder)
    with _locked(folder, PATIENCE * timeout_s):
        missing, failure = find_missing(), _last_failure(folder)
        if missing and failure and failure != failure_before:
            raise DownloadError(failure)
        slow_mirrors: dict[str, str] = {}
        try:
            with _work_folder(folder) as work:
                for download in missing:
                    _download(download, work, timeout_s, slow_mirrors).replace(folder / download.name)
        except DownloadError as error:
            tried = f"  (tried by process {os.getpid()} at {time.strftime('%Y-%m-%d %H:%M:%S%z')})"
            (folder / FAILURE_NAME).write_text(f"{error}\n{tried}", encoding="utf-8")
            raise
        (folder / FAILURE_NAME).unlink(missing_ok=True)


def _last_failure(folder: Path) -> str:
    """Return the error of the last download that failed, or "" after one that did not."""
    try:
        content = read_bounded(folder / FAILURE_NAME, MAX_FILE_BYTES)
        return content.decode("utf-8", errors="replace")  # its writer may have been killed
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def _locked(folder: Path, patience_s: float) -> Iterator[None]:
    """Hold the lock. Raises DownloadError if another process holds the lock and writes nothing for `patience_s`."""
    written, written_s = _written_at(folder), time.monotonic()

    def is_silent() -> bool:
        nonlocal written, written_s
        if (now := _written_at(folder)) != written:
            written, written_s = now, time.monotonic()
        return time.monotonic() - written_s > patience_s

    try:
        lock = filelock.FileLock(folder / LOCK_NAME).acquire(poll_interval=POLL_S, cancel_check=is_silent)
    except filelock.Timeout:
        raise DownloadError(
            f"another process is downloading, but has written nothing for {patience_s:g} s: it may be suspended or "
            f"hang. It uses {', '.join(written) or folder / LOCK_NAME} (a number in a folder's name is its process "
            "id): stop that process, then run the same command again"
        ) from None
    with lock:
        yield


def _written_at(folder: Path) -> dict[str, int]:
    """Return when each unfinished file was last written. Every chunk counts, and every mirror begins a new file."""
    times = {}
    for path in folder.glob(f"{WORK_PREFIX}*/*"):
        with contextlib.suppress(FileNotFoundError):
            times[str(path)] = path.stat().st_mtime_ns
    return times


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for unfinished files and remove it afterwards, with those of processes that were killed.

    Only the holder of the lock calls this.
    """
    work = folder / f"{WORK_PREFIX}{os.getpid()}"
    try:
        for leftover in folder.glob(f"{WORK_PREFIX}*"):
            shutil.rmtree(leftover)
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(download: Download, work: Path, timeout_s: float, slow_mirrors: dict[str, str]) -> Path:
    """Download the file into the work folder from the first mirror that has it. Raises DownloadError, OSError.

    slow_mirrors: the mirrors that are not asked any more, each with the reason; added to.
    """
    failures = []
    for address in download.addresses:
        mirror = address.rpartition("/")[0]
        if mirror in slow_mirrors:
            failures.append(f"\n  {address}: not asked again ({slow_mirrors[mirror]})")
            continue
        try:
            return _download_from(address, download, work, timeout_s)
        except _MirrorError as error:
            failures.append(f"\n  {address}: {error}")
            if isinstance(error, _SlowMirrorError):
                slow_mirrors[mirror] = str(error)
    raise DownloadError(f"{download.name} could not be downloaded:{''.join(failures)}")


def _download_from(address: str, download: Download, work: Path, timeout_s: float) -> Path:
    """Let pooch download and verify the file. Raises _MirrorError for the server, OSError for the disk.

    A thread does the waiting, because the time limit of requests bounds neither the name look-up, nor a header that
    comes byte by byte, nor connecting: each of a host's addresses gets all of the time, and S3 has eight.
    """
    pooch.get_logger().setLevel("WARNING")  # otherwise pooch prints a line for every file
    progress, finished = _Progress(), Future[Path]()
    responses: list[requests.Response] = []
    http = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=CHUNK_BYTES,
        timeout=2 * timeout_s,  # only ends a thread that was given up
        headers={"User-Agent": "mnist_ray", "Accept-Encoding": "identity"},
        hooks={"response": [_keep_packed, lambda response, **_: responses.append(response)]},
    )

    def receive(address: str, path: str, _: object) -> None:
        http(address, path, None)
        with Path(path).open("rb") as file:
            progress.start = file.read(15)
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # a temporary file of pooch is its owner's alone

    def run() -> None:
        try:
            finished.set_result(Path(pooch.retrieve(address, download.sha256, download.name, work, downloader=receive)))
        except Exception as error:
            finished.set_exception(error)
        finally:
            for response in responses:  # pooch leaves those open that failed
                response.close()

    threading.Thread(target=run, daemon=True).start()
    try:
        _wait(finished, progress, timeout_s)
        return finished.result()
    except requests.RequestException as error:
        raise _MirrorError(_first_cause(error)) from error
    except OSError as error:  # of an open file, which names no path
        raise OSError(error.errno, error.strerror, str(work.parent / download.name)) from error
    except ValueError as error:
        raise _MirrorError(
            f"{progress.num_bytes} bytes that begin with {progress.start!r} do not have the SHA-256 "
            f"{download.sha256[:12]}"
        ) from error
    finally:
        progress.is_given_up = True


@dataclass
class _Progress:
    """Progress bar for pooch, which calls `update` after each chunk; an exception there ends the download."""

    num_bytes: int = 0
    start: bytes = b""
    is_given_up: bool = False
    total: int = 0  # set by pooch, from the header

    def update(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.is_given_up:
            raise _MirrorError("given up")
        if self.num_bytes > MAX_FILE_BYTES:
            raise _MirrorError(f"more than {MAX_FILE_BYTES} bytes came, no file of a data set is so large")

    def reset(self) -> None:
        """Start again at 0: pooch then counts the whole file as one chunk."""
        self.num_bytes = 0

    def close(self) -> None:
        """Do nothing."""


def _wait(finished: Future[Path], progress: _Progress, timeout_s: float) -> None:
    """Wait for the thread. Raises _SlowMirrorError for a mirror that is silent or slow."""
    totals = deque([0], maxlen=TICKS + 1)  # the bytes that had come at the last ticks
    while wait([finished], timeout=timeout_s / TICKS).not_done:
        totals.append(progress.num_bytes)
        if len(totals) > TICKS and totals[-1] - totals[0] < timeout_s * MIN_BYTES_PER_S:
            rate = f"under {MIN_BYTES_PER_S // 1024} KiB/s for {timeout_s:g} s"
            raise _SlowMirrorError(f"too slow, {rate}, {progress.num_bytes} bytes in all")


def _keep_packed(response: Any, **_: object) -> None:
    """Keep requests from unpacking: some servers call a .gz file's own compression its encoding."""
    response.raw.headers.pop("Content-Encoding", None)


def _first_cause(error: BaseException) -> str:
    """Return the text of the error that the others were raised from: "Connection refused", not requests' five lines."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__
