"""Files in an object store, S3 or Google Cloud Storage, through fsspec.

A store shows an object whole or not at all, and can create one on condition that there is none of this name: the
counterparts of a disk's rename and hard link. Stores without such a condition are not supported, because the
condition keeps two owners of a run apart.
"""

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upath import UPath

# The options that make a store's client repeat its requests for most of a minute, by scheme. gcsfs does so anyway.
RETRY_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 8}}},
    "gs": {},
}

SCHEMES = tuple(RETRY_OPTIONS)
EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # the package of a scheme, and our extra that installs it


class OutOfReachError(OSError):
    """A request that a store did not answer or refused: the store, its bucket or a permission is missing."""


def is_address(text: str) -> bool:
    """Return whether this is the address of a store, not a path on a disk."""
    return "://" in text


def store_path(address: str, wait_for_outages: bool = True) -> "UPath":
    """Return the path of `s3://bucket/folder` or `gs://bucket/folder`, with credentials from the environment.

    Listings are not cached, because other processes write too.
    """
    from upath import UPath  # imports fsspec, which a run on a disk does without

    scheme = address.partition("://")[0]
    options = RETRY_OPTIONS[scheme] if wait_for_outages else {}
    path: UPath = UPath(address, protocol=scheme, use_listings_cache=False, **options)
    return path


def write(path: "UPath", content: bytes) -> None:
    """Write an object. Raises OutOfReachError."""
    with _errors_named(path, is_writing=True):
        path.fs.pipe_file(path.path, content)


def create(path: "UPath", content: bytes) -> None:
    """Write a new object. Raises FileExistsError if there is one with other content, OutOfReachError.

    A store's reply can get lost: an object that exists with this content is taken for the one just written.
    """
    try:
        with _errors_named(path, is_writing=True):
            path.fs.pipe_file(path.path, content, mode="create")
    except OSError as error:  # s3fs reports a failed condition as an invalid argument
        try:
            existing = read(path)
        except FileNotFoundError:
            raise error from None
        if existing != content:
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None


def read(path: "UPath") -> bytes:
    """Read an object. Raises FileNotFoundError, OutOfReachError."""
    with _errors_named(path):
        content: bytes = path.fs.cat_file(path.path)
    return content


def read_each(paths: "Sequence[UPath]") -> list[bytes]:
    """Read objects in parallel. Raises FileNotFoundError, OutOfReachError."""
    if not paths:
        return []
    with _errors_named(paths[0]):
        contents: dict[str, bytes] = paths[0].fs.cat([path.path for path in paths])
    return [contents[path.path] for path in paths]


def children(folder: "UPath", pattern: str) -> "list[UPath]":
    """List the objects and folders directly below whose names match. Raises OutOfReachError."""
    with _errors_named(folder):
        try:
            names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in folder.fs.ls(folder.path, detail=True)]
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [folder / name for name in names if name and name != folder.name and fnmatch(name, pattern)]


def exists(path: "UPath") -> bool:
    """Return whether there is an object or folder of this name. Raises OutOfReachError."""
    with _errors_named(path):
        return bool(path.fs.exists(path.path))


def remove(path: "UPath") -> None:
    """Remove an object, if there is one. Raises OutOfReachError."""
    with _errors_named(path), contextlib.suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def remove_tree(folder: "UPath") -> None:
    """Remove every object below, if there are any. Raises OutOfReachError."""
    with _errors_named(folder), contextlib.suppress(FileNotFoundError):
        folder.fs.rm(folder.path, recursive=True)


def modified_at(path: "UPath") -> float:
    """Return the time at which an object was written, by the store's clock, in seconds since 1970.

    The time of a folder is the latest of the objects directly in it. Raises FileNotFoundError, OutOfReachError.
    """
    with _errors_named(path):
        entries = [path.fs.info(path.path)]
        if entries[0]["type"] == "directory":
            entries = [entry for entry in path.fs.ls(path.path, detail=True) if entry["type"] == "file"]
        return max((path.fs.modified(entry["name"]).timestamp() for entry in entries), default=0.0)


@contextlib.contextmanager
def _errors_named(path: "UPath", is_writing: bool = False) -> Iterator[None]:
    """Turn every error of a store's client into an OutOfReachError that names the path.

    A FileNotFoundError stays one, unless the body writes: then the bucket is missing.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not is_writing:
            raise
        raise OutOfReachError(errno.EREMOTEIO, _without_secrets(error), str(path)) from error


def _without_secrets(error: Any) -> str:
    """Return the error's text on one line, without the user name and password that an endpoint's address can hold."""
    return re.sub(r"//[^/@\s]+@", "//", " ".join(str(error).split()) or type(error).__name__)
