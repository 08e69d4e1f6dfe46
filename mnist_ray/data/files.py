"""The files of a data set: their paths, and their content once its SHA-256 is verified."""

import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_ray.errors import DataError
from mnist_ray.storage.files import read_bounded

GZIP_MAGIC = b"\x1f\x8b"
MOST_BYTES = 256 * 10**6  # of a file, and of what a packed one holds


@dataclass(frozen=True)
class DataFile:
    """A file in the folder where torchvision keeps it, with the only content that is accepted, packed or unpacked.

    torchvision_class: the class that has the download addresses, and the name of the folder.
    sha256: of the packed file as it is published.
    content_sha256: of what is packed; without it only the published file is accepted.
    """

    torchvision_class: str
    name: str
    sha256: str
    content_sha256: str | None = None

    def path(self, data_dir: Path) -> Path:
        return data_dir / self.torchvision_class / "raw" / self.name

    @property
    def unpacked_name(self) -> str:
        return self.name.removesuffix(".gz")


def default_data_dir() -> Path:
    """Return $MNIST_RAY_DATA if set, else `mnist_ray` in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("MNIST_RAY_DATA"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnist_ray"


def data_dir_of(name: str | None) -> Path:
    """Return the folder that a spec or a command names, or the default one if `name` is None or empty."""
    return Path(name).expanduser() if name else default_data_dir()


def missing_files(files: Sequence[DataFile], data_dir: Path) -> list[DataFile]:
    """Verify the files that are there and return the others. Raises DataError for a wrong or unreadable file."""
    return [file for file in files if verified_content(file, data_dir) is None]


def verified_content(file: DataFile, data_dir: Path) -> bytes | None:
    """Read a file once, packed or unpacked, and return its verified content; None if neither is there.

    What counts is the content: the same bytes packed again are accepted. Raises DataError if the file cannot be read
    or holds something else.
    """
    packed = file.path(data_dir)
    for path in (packed, packed.with_name(file.unpacked_name)):
        try:
            content = read_bounded(path, MOST_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror} (errno {error.errno})\n{how_to_provide([file], data_dir)}"
            ) from error
        return _verified(content, file, path)
    return None


def _verified(content: bytes, file: DataFile, path: Path) -> bytes:
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 == file.content_sha256:
        return content
    if sha256 == file.sha256 or (file.content_sha256 and content[:2] == GZIP_MAGIC):
        try:
            with gzip.open(io.BytesIO(content)) as stream:
                unpacked = stream.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            unpacked = b""
        if len(unpacked) <= MOST_BYTES and (
            sha256 == file.sha256 or hashlib.sha256(unpacked).hexdigest() == file.content_sha256
        ):
            return unpacked
    only = "" if file.content_sha256 else f" of the published {file.name}, the only form that can be verified"
    raise DataError(
        f"{path}: its {len(content)} bytes have SHA-256 {sha256[:12]}, expected {file.sha256[:12]}{only}: "
        "delete the file so that it is downloaded again, or put the correct file there"
    )


def how_to_provide(files: Sequence[DataFile], data_dir: Path) -> str:
    """Return the lines of an error message that name the remedies for missing files."""
    folder = files[0].path(data_dir.absolute()).parent
    near = near_miss(files[0], data_dir)
    return (
        f"Put {', '.join(file.name for file in files)} into {folder}, or name a data folder that has them "
        f"under {files[0].torchvision_class}/raw with --data-dir or MNIST_RAY_DATA. "
        f"jobs/quickstart.yaml needs no files and no network.{near and f' {near}'}"
    )


def near_miss(file: DataFile, data_dir: Path) -> str:
    """Return a sentence about the file under another name or in a folder near to its own; "" if there is none."""
    place = data_dir.absolute()
    right = file.path(place)
    names = (file.name, file.unpacked_name, file.unpacked_name.replace("-idx", ".idx"))
    deeper = sorted(place.glob(f"*/{glob.escape(file.torchvision_class)}/raw")) if place.is_dir() else []
    for folder in (right.parent, place, place / "raw", right.parents[1], *deeper):
        for found in (folder / name for name in names):
            if not found.is_file():
                continue
            if folder.parts[-2:] == (file.torchvision_class, "raw") and folder != right.parent:
                return f"{found} is there: name {folder.parents[1]} as the data folder."
            return f"{found} is there: move it and the others to {right.parent}, under the names above."
    return ""
