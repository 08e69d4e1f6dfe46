"""Writing files so that a reader sees the old content or the new, never half of it: on disks and in object stores.

A failpoint is a moment of such a write at which a test can end the process: $MNIST_RAY_FAILPOINT is
`<point>:<before|during|after>:<occurrence>`, such as `event-epoch:during:3`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from mnist_ray.errors import CorruptFileError
from mnist_ray.storage import object_stores

Place = Path | UPath  # of a file or a folder: on a disk, or in an object store

FAILPOINT = "MNIST_RAY_FAILPOINT"

_passed: Counter[str] = Counter()  # how often this process came by each failpoint


def place_of(text: str, is_patient: bool = True) -> Place:
    """A path, or the address of an object store (`s3://bucket/folder`), whose outages are waited for with patience."""
    return object_stores.place_at(text, is_patient) if object_stores.is_address(text) else Path(text).expanduser()


# --- writing -----------------------------------------------------------------------------------------------------


def write_atomic(place: Place, content: bytes, point: str | None = None) -> None:
    """Write beside, flush to the disk, rename; or one object. Raises OSError; then `place` is as it was."""
    if isinstance(place, Path):
        replace_atomic(place, lambda beside: beside.write_bytes(content), point)
        return
    with _object_written(point or place.name):
        object_stores.write(place, content)


def replace_atomic(place: Place, write: Callable[[Path], object], point: str | None = None) -> None:
    """Let `write` make a file on a disk, which then becomes `place` at once; for writers that need a path.

    point: the failpoint's name, `place.name` if there is none.
    """
    if isinstance(place, Path):
        with _written_beside(place, write, point or place.name) as beside:
            beside.replace(place)
        return
    with tempfile.TemporaryDirectory(prefix="mnist-ray-") as folder:
        made = Path(folder) / place.name
        write(made)
        write_atomic(place, made.read_bytes(), point)


def create_atomic(place: Place, content: bytes, point: str | None = None) -> None:
    """As `write_atomic`, but raises FileExistsError if `place` is there already, and leaves that as it is.

    The link is one step on local disks and on NFS, where its answer can get lost: what is there may be ours.
    """
    if not isinstance(place, Path):
        with _object_written(point or place.name):
            object_stores.create(place, content)
        return
    with _written_beside(place, lambda beside: beside.write_bytes(content), point or place.name) as beside:
        try:
            os.link(beside, place)
        except FileExistsError:
            if place.read_bytes() != content:
                raise
        beside.unlink()


@contextlib.contextmanager
def _object_written(point: str) -> Iterator[None]:
    _failpoint(point, "before")
    yield
    _failpoint(point, "after")


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


def remove_leftovers(folder: Place) -> None:
    """Remove the files beside that writers which were killed left in `folder` and below; a store never shows any."""
    if not isinstance(folder, Path):
        return
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


# --- reading and removing ----------------------------------------------------------------------------------------


def read(place: Place) -> bytes:
    """Raises FileNotFoundError, OSError."""
    return place.read_bytes() if isinstance(place, Path) else object_stores.read(place)


def read_each(places: Sequence[Place]) -> list[bytes]:
    """All of one kind; from an object store many at a time. Raises FileNotFoundError, OSError."""
    remote = [place for place in places if not isinstance(place, Path)]
    return object_stores.read_each(remote) if remote else [read(place) for place in places]


def exists(place: Place) -> bool:
    return place.exists() if isinstance(place, Path) else object_stores.exists(place)


def children(folder: Place, pattern: str = "*") -> list[Place]:
    """What lies directly in a folder and has a name that matches, in no order; nothing if there is no such folder."""
    if isinstance(folder, Path):
        return list(folder.glob(pattern))
    return list(object_stores.children(folder, pattern))


def remove(place: Place) -> None:
    """A file, if it is there."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    else:
        object_stores.remove(place)


def remove_tree(folder: Place) -> None:
    """A folder, as far as that can be done: what is left is in nobody's way."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        object_stores.remove_tree(folder)


def modified_at(place: Place) -> float:
    """By the clock of the disk or the store, in seconds since 1970. Raises FileNotFoundError, OSError."""
    return place.stat().st_mtime if isinstance(place, Path) else object_stores.modified_at(place)


# --- sealed content ----------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_json(path: Place, body: Any) -> None:
    """Write `body` as readable JSON, atomically."""
    write_atomic(path, json.dumps(body, indent=2, allow_nan=False).encode() + b"\n")


def seal(body: Any) -> str:
    """The SHA-256 of `body`'s canonical JSON, in hexadecimal."""
    return sha256(_canonical(body))


def sealed_json(body: Any) -> bytes:
    """`body` as JSON together with its own hash."""
    return json.dumps({"body": body, "sha256": seal(body)}).encode()


def write_sealed_json(path: Place, body: Any, point: str | None = None) -> None:
    """Write `body` as JSON together with its own hash, atomically."""
    write_atomic(path, sealed_json(body), point)


def read_sealed_json(path: Place) -> Any:
    """Read what `write_sealed_json` wrote. Raises CorruptFileError, FileNotFoundError."""
    return unsealed(read(path), path)


def unsealed(content: bytes, path: Place) -> Any:
    """The body of what `sealed_json` made. path: where it was read. Raises CorruptFileError."""
    try:
        sealed = json.loads(content)
        body, expected = sealed["body"], sealed["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not a sealed JSON file ({error})") from error
    if seal(body) != expected:
        raise CorruptFileError(f"{path}: its content does not match its SHA-256 {expected[:12]}")
    return body


def _canonical(body: Any) -> bytes:
    """Floats are written by repr, which reads back to the same value, so NaN and infinity survive too."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
