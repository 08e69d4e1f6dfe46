"""Writing files so that a reader sees the old content or the new, never half of it."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CorruptFileError(ValueError):
    """A file's content is not what was written: torn, cut, flipped or not ours."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside, flush to the disk, rename. Raises OSError; then `path` is as it was."""
    replace_atomic(path, lambda beside: beside.write_bytes(content))


def replace_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, flush it, rename it to `path`; for writers that need a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())  # before the rename, or a power cut leaves an empty file under the new name
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


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


def write_sealed_json(path: Path, body: Any) -> None:
    """Write `body` as JSON together with its own hash, atomically."""
    write_atomic(path, json.dumps({"body": body, "sha256": sha256(_canonical(body))}).encode())


def read_sealed_json(path: Path) -> Any:
    """Read what `write_sealed_json` wrote. Raises CorruptFileError, FileNotFoundError."""
    try:
        sealed = json.loads(path.read_bytes())
        body, expected = sealed["body"], sealed["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not a sealed JSON file ({error})") from error
    if sha256(_canonical(body)) != expected:
        raise CorruptFileError(f"{path}: its content does not match its SHA-256 {expected[:12]}")
    return body


def _canonical(body: Any) -> bytes:
    """Floats are written by repr, which reads back to the same value, so NaN and infinity survive too."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
