"""Files in an object store, S3 or Google Cloud Storage, through fsspec.

A store shows an object whole or not at all, and creates one under the condition that there is none: what renaming and
hard links are on a disk. Only stores with such a condition are taken: it keeps two owners of a run apart.
"""

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

from upath import UPath

# By scheme, of s3fs's client: an outage of most of a minute is waited for. gcsfs has tries enough of its own.
PATIENT: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 8}}},
    "gs": {},
}

SCHEMES = tuple(PATIENT)


class OutOfReachError(OSError):
    """A store did not do what it was asked: it, its bucket or the right to it is missing."""


def is_address(text: str) -> bool:
    return "://" in text


def place_at(address: str, is_patient: bool = True) -> UPath:
    """address: `s3://bucket/folder` or `gs://bucket/folder`. Credentials come from the environment, as their tools do.

    Listings are never kept: others write too.
    """
    scheme = address.partition("://")[0]
    options = PATIENT[scheme] if is_patient else {}
    place: UPath = UPath(address, protocol=scheme, use_listings_cache=False, **options)
    return place


def write(place: UPath, content: bytes) -> None:
    with _failures(place, writing=True):
        place.fs.pipe_file(place.path, content)


def create(place: UPath, content: bytes) -> None:
    """Raises FileExistsError if there is another object already; an answer that got lost is no other."""
    try:
        with _failures(place, writing=True):
            place.fs.pipe_file(place.path, content, mode="create")
    except OSError as error:  # s3fs calls a condition that does not hold an invalid argument
        try:
            existing = read(place)
        except FileNotFoundError:
            raise error from None
        if existing != content:
            raise FileExistsError(errno.EEXIST, "exists already", str(place)) from None


def read(place: UPath) -> bytes:
    """Raises FileNotFoundError."""
    with _failures(place):
        content: bytes = place.fs.cat_file(place.path)
    return content


def read_each(places: Sequence[UPath]) -> list[bytes]:
    """Many at a time. Raises FileNotFoundError."""
    if not places:
        return []
    with _failures(places[0]):
        found: dict[str, bytes] = places[0].fs.cat([place.path for place in places])
    return [found[place.path] for place in places]


def children(place: UPath, pattern: str) -> list[UPath]:
    """The objects and folders directly below, whose names match."""
    with _failures(place):
        try:
            names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in place.fs.ls(place.path, detail=True)]
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [place / name for name in names if name and name != place.name and fnmatch(name, pattern)]


def exists(place: UPath) -> bool:
    with _failures(place):
        return bool(place.fs.exists(place.path))


def remove(place: UPath) -> None:
    """An object, if it is there."""
    with _failures(place), contextlib.suppress(FileNotFoundError):
        place.fs.rm_file(place.path)


def remove_tree(place: UPath) -> None:
    """Everything below, if there is anything."""
    with _failures(place), contextlib.suppress(FileNotFoundError):
        place.fs.rm(place.path, recursive=True)


def modified_at(place: UPath) -> float:
    """When an object was written, by the store's clock, in seconds since 1970; of a folder, the latest directly in it.

    Raises FileNotFoundError.
    """
    with _failures(place):
        entries = [place.fs.info(place.path)]
        if entries[0]["type"] == "directory":
            entries = [entry for entry in place.fs.ls(place.path, detail=True) if entry["type"] == "file"]
        return max((place.fs.modified(entry["name"]).timestamp() for entry in entries), default=0.0)


@contextlib.contextmanager
def _failures(place: UPath, writing: bool = False) -> Iterator[None]:
    """What a store's client raises becomes an OSError that names the place; a file that is read and missing is that."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not writing:
            raise
        raise OutOfReachError(errno.EREMOTEIO, _without_secrets(error), str(place)) from error


def _without_secrets(error: Any) -> str:
    """An endpoint's address can hold a user's name and password."""
    return re.sub(r"//[^/@\s]+@", "//", " ".join(str(error).split()) or type(error).__name__)
