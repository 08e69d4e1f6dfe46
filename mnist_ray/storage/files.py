"""Files on disks and in object stores, written so that a reader sees the old content or the new, never half of one.

A failpoint is a moment of such a write at which a test can end the process: $MNIST_RAY_FAILPOINT is
`<failpoint>:<before|during|after>:<occurrence>`, such as `event-epoch:during:3`. A failpoint is named after the file
unless the caller names it.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from mnist_ray.errors import CorruptFileError
from mnist_ray.storage import object_stores

if TYPE_CHECKING:
    from upath import UPath  # imports fsspec, which takes as long as everything else that reads a spec

StoragePath = Union[Path, "UPath"]  # of a file or a folder, on a disk or in an object store

FAILPOINT = "MNIST_RAY_FAILPOINT"

MOST_BYTES = 256 * 10**6  # of a file of a run, far more than any has

UNFINISHED = ".mnist-ray-unfinished-"  # how the names of files begin that are being written

NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what os.link fails with on a file system without
AT_FDCWD, RENAME_NOREPLACE = -100, 1  # of Linux's renameat2

_passed: Counter[str] = Counter()  # how often this process has passed each moment of a failpoint


def storage_path(text: str, wait_for_outages: bool = True) -> StoragePath:
    """Return the path of a file or folder on a disk, or of one in an object store (`s3://bucket/folder`).

    wait_for_outages: whether requests to a store are repeated for most of a minute before they fail.
    """
    if object_stores.is_address(text):
        return object_stores.store_path(text, wait_for_outages)
    return Path(text).expanduser()


# --- writing -----------------------------------------------------------------------------------------------------


def write_atomic(path: StoragePath, content: bytes, failpoint: str | None = None) -> None:
    """Write a file. On a disk: write another file, flush it, rename it. Raises OSError and leaves `path` as it was."""
    if isinstance(path, Path):
        replace_atomic(path, lambda unfinished: unfinished.write_bytes(content), failpoint)
        return
    with _store_failpoints(failpoint or path.name):
        object_stores.write(path, content)


def replace_atomic(path: StoragePath, write: Callable[[Path], object], failpoint: str | None = None) -> None:
    """Call `write` with the path of a file on a disk, then rename this file to `path`; for writers that need a path.

    Raises OSError and what `write` raises, and leaves `path` as it was.
    """
    if isinstance(path, Path):
        with _unfinished_file(path, write, failpoint or path.name) as unfinished:
            unfinished.replace(path)
        return
    with tempfile.TemporaryDirectory(prefix="mnist-ray-") as folder:
        local = Path(folder) / path.name
        write(local)
        write_atomic(path, local.read_bytes(), failpoint)


def create_atomic(path: StoragePath, content: bytes, *failpoints: str) -> None:
    """Write a new file. Raises FileExistsError if `path` exists with other content, and leaves that as it is.

    On a disk the last step is a hard link, which is atomic on local disks and on NFS. Where the file system has no hard
    links, the step is a rename that replaces nothing. An NFS server's reply can get lost after the link was made: a
    file that exists with this content is therefore taken for the one just written. Raises OSError, with the remedy
    where the file system can do neither.
    """
    failpoints = failpoints or (path.name,)
    if not isinstance(path, Path):
        with _store_failpoints(*failpoints):
            object_stores.create(path, content)
        return
    with _unfinished_file(path, lambda unfinished: unfinished.write_bytes(content), *failpoints) as unfinished:
        try:
            _link_or_rename(unfinished, path)
        except FileExistsError:
            if path.read_bytes() != content:
                raise
        unfinished.unlink(missing_ok=True)


def _link_or_rename(unfinished: Path, path: Path) -> None:
    """Give a file the name `path` unless something has it. Raises FileExistsError, OSError."""
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
    else:
        return
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Python has no name for it
    if renameat2 and renameat2(AT_FDCWD, os.fsencode(unfinished), AT_FDCWD, os.fsencode(path), RENAME_NOREPLACE) == 0:
        return
    if renameat2 and ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    raise OSError(
        errno.EOPNOTSUPP,
        "this file system has neither hard links nor a rename that replaces nothing, and without one of them two "
        "processes could own a run: give --storage a folder on a local disk, NFS, or s3://BUCKET/FOLDER",
        str(path.parent),
    )


@contextlib.contextmanager
def _store_failpoints(*failpoints: str) -> Iterator[None]:
    """Pass the failpoints before and after the body, which writes one object."""
    _pass_failpoints(failpoints, "before")
    yield
    _pass_failpoints(failpoints, "after")


@contextlib.contextmanager
def _unfinished_file(path: Path, write: Callable[[Path], object], *failpoints: str) -> Iterator[Path]:
    """Write and flush a hidden file in the folder of `path`; the body gives this file its name."""
    _pass_failpoints(failpoints, "before")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{UNFINISHED}{path.name}.", suffix=path.suffix)
    os.close(handle)
    unfinished = Path(name)
    try:
        write(unfinished)
        _pass_failpoints(failpoints, "during", unfinished)
        with unfinished.open("rb") as stream:
            os.fsync(stream.fileno())  # before the rename, or a power cut leaves an empty file under the new name
        unfinished.chmod(0o644)
        yield unfinished
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    sync_folder(path.parent)
    _pass_failpoints(failpoints, "after")


def _pass_failpoints(failpoints: Sequence[str], moment: str, half_written: Path | None = None) -> None:
    """Count this moment of each failpoint, and kill this process at once if $MNIST_RAY_FAILPOINT names one of them."""
    deadly = os.environ.get(FAILPOINT)
    if not deadly:
        return
    for failpoint in failpoints:
        here = f"{failpoint}:{moment}"
        _passed[here] += 1
        if deadly == f"{here}:{_passed[here]}":
            if half_written is not None:
                os.truncate(half_written, half_written.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def remove_leftovers(folder: StoragePath) -> None:
    """Remove the unfinished files of killed writers in `folder` and below. An object store has none.

    Nothing else is removed, and no link is followed.
    """
    if not isinstance(folder, Path):
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(UNFINISHED):
                with contextlib.suppress(OSError):
                    Path(parent, name).unlink()


def first_link(path: StoragePath) -> Path | None:
    """Return a link that stands at `path` or somewhere below; None without one. An object store has none."""
    if not isinstance(path, Path):
        return None
    if path.is_symlink():
        return path
    for parent, folders, names in os.walk(path):
        for name in (*folders, *names):
            if (found := Path(parent, name)).is_symlink():
                return found
    return None


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, on file systems that can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- reading and removing ----------------------------------------------------------------------------------------


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a file of a disk whole, if it is a file and has at most so many bytes. Raises OSError, which says why not.

    A named pipe would block until somebody writes, and a device may never end.
    """
    # Looked at before, since opening a device can do something, and after, since another may have taken its place.
    _check_is_file(path.stat().st_mode, path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        _check_is_file(os.fstat(file.fileno()).st_mode, path)
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes / 1e6:g} MB, the most that is read", str(path))
    return content


def _check_is_file(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory, not a file", str(path))
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file", str(path))


def read(path: StoragePath) -> bytes:
    """Read a file. Raises FileNotFoundError, OSError, on a disk also for what is no file or too large."""
    return read_bounded(path, MOST_BYTES) if isinstance(path, Path) else object_stores.read(path)


def read_each(paths: Sequence[StoragePath]) -> list[bytes]:
    """Read files of one storage, in parallel if this is an object store. Raises FileNotFoundError, OSError."""
    remote = [path for path in paths if not isinstance(path, Path)]
    return object_stores.read_each(remote) if remote else [read(path) for path in paths]


def exists(path: StoragePath) -> bool:
    """Return whether there is such a file or folder."""
    return path.exists() if isinstance(path, Path) else object_stores.exists(path)


def children(folder: StoragePath, pattern: str = "*") -> list[StoragePath]:
    """List the files and folders directly in a folder whose names match, in no order; [] if there is no such folder."""
    if isinstance(folder, Path):
        return list(folder.glob(pattern))
    return list(object_stores.children(folder, pattern))


def remove(path: StoragePath) -> None:
    """Remove a file, if there is one."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:
        object_stores.remove(path)


def remove_tree(folder: StoragePath) -> None:
    """Remove a folder as far as possible. Errors are ignored: no reader minds what is left."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        object_stores.remove_tree(folder)


def modified_at(path: StoragePath) -> float:
    """Return the time of the last change by the disk's or store's clock, in seconds since 1970.

    Raises FileNotFoundError, OSError.
    """
    return path.stat().st_mtime if isinstance(path, Path) else object_stores.modified_at(path)


# --- sealed content ----------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_json(path: StoragePath, body: Any) -> None:
    """Write `body` as indented JSON, atomically. Raises OSError, ValueError for NaN and infinity."""
    write_atomic(path, json.dumps(body, indent=2, allow_nan=False).encode() + b"\n")


def seal(body: Any) -> str:
    """Return the SHA-256 of `body`'s canonical JSON, in hexadecimal.

    Equal values have equal JSON. Floats, NaN and infinity among them, read back as the same value (`repr`).
    """
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def sealed_json(body: Any) -> bytes:
    """Return `body` as JSON together with its own hash."""
    return json.dumps({"body": body, "sha256": seal(body)}).encode()


def write_sealed_json(path: StoragePath, body: Any, failpoint: str | None = None) -> None:
    """Write `body` as JSON together with its own hash, atomically. Raises OSError."""
    write_atomic(path, sealed_json(body), failpoint)


def read_sealed_json(path: StoragePath) -> Any:
    """Read the body that `write_sealed_json` wrote. Raises CorruptFileError, FileNotFoundError, OSError."""
    return unsealed(read(path), path)


def unsealed(content: bytes, path: StoragePath) -> Any:
    """Return the body in the result of `sealed_json`. Raises CorruptFileError, which names `path`."""
    try:
        sealed = json.loads(content)
        body, expected = sealed["body"], sealed["sha256"]
        found = seal(body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not a sealed JSON file ({error})") from error
    if found != expected:
        raise CorruptFileError(f"{path}: its content does not match its SHA-256 {expected!s:.12}")
    return body
