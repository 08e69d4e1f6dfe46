"""Writing files so that a reader sees the old content or the new, never half of it.

A failpoint is a moment of such a write at which a test can end the process: $MNIST_RAY_FAILPOINT is
`<point>:<before|during|after>:<occurrence>`, such as `event-epoch:during:3`.
"""

import contextlib
import hashlib
import json
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FAILPOINT = "MNIST_RAY_FAILPOINT"

_passed: Counter[str] = Counter()  # how often this process came by each failpoint


class CorruptFileError(ValueError):
    """A file's content is not what was written: torn, cut, flipped, gone or not ours."""


def write_atomic(path: Path, content: bytes, point: str | None = None) -> None:
    """Write beside, flush to the disk, rename. Raises OSError; then `path` is as it was."""
    replace_atomic(path, lambda beside: beside.write_bytes(content), point)


def replace_atomic(path: Path, write: Callable[[Path], object], point: str | None = None) -> None:
    """Let `write` make a file beside `path`, flush it, rename it to `path`; for writers that need a path.

    point: the failpoint's name, `path.name` if there is none.
    """
    with _written_beside(path, write, point or path.name) as beside:
        beside.replace(path)


def create_atomic(path: Path, content: bytes, point: str | None = None) -> None:
    """As `write_atomic`, but raises FileExistsError if `path` is there already, and leaves that as it is.

    The link is one step on local disks and on NFS, where its answer can get lost: what is there may be ours.
    """
    with _written_beside(path, lambda beside: beside.write_bytes(content), point or path.name) as beside:
        try:
            os.link(beside, path)
        except FileExistsError:
            if path.read_bytes() != content:
                raise
        beside.unlink()


@contextlib.contextmanager
def _written_beside(path: Path, write: Callable[[Path], object], point: str) -> Iterator[Path]:
    _failpoint(point, "before")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        _failpoint(point, "during", beside)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())  # before the rename, or a power cut leaves an empty file under the new name
        beside.chmod(0o644)
        yield beside
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)
    _failpoint(point, "after")


def _failpoint(point: str, moment: str, half_written: Path | None = None) -> None:
    """End this process at once if this is where $MNIST_RAY_FAILPOINT says so."""
    chosen = os.environ.get(FAILPOINT)
    if not chosen:
        return
    here = f"{point}:{moment}"
    _passed[here] += 1
    if chosen == f"{here}:{_passed[here]}":
        if half_written is not None:
            os.truncate(half_written, half_written.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def remove_leftovers(folder: Path) -> None:
    """Remove the files beside that writers which were killed left in `folder` and below."""
    for leftover in folder.rglob(".*"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable; file systems without folder handles are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, body: Any) -> None:
    """Write `body` as readable JSON, atomically."""
    write_atomic(path, json.dumps(body, indent=2, allow_nan=False).encode() + b"\n")


def seal(body: Any) -> str:
    """The SHA-256 of `body`'s canonical JSON, in hexadecimal."""
    return sha256(_canonical(body))


def sealed_json(body: Any) -> bytes:
    """`body` as JSON together with its own hash."""
    return json.dumps({"body": body, "sha256": seal(body)}).encode()


def write_sealed_json(path: Path, body: Any, point: str | None = None) -> None:
    """Write `body` as JSON together with its own hash, atomically."""
    write_atomic(path, sealed_json(body), point)


def read_sealed_json(path: Path) -> Any:
    """Read what `write_sealed_json` wrote. Raises CorruptFileError, FileNotFoundError."""
    try:
        sealed = json.loads(path.read_bytes())
        body, expected = sealed["body"], sealed["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not a sealed JSON file ({error})") from error
    if seal(body) != expected:
        raise CorruptFileError(f"{path}: its content does not match its SHA-256 {expected[:12]}")
    return body


def _canonical(body: Any) -> bytes:
    """Floats are written by repr, which reads back to the same value, so NaN and infinity survive too."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
