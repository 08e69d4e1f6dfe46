"""The files of a data set: their paths, and their content once its SHA-256 is verified."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_ray.errors import DataError


@dataclass(frozen=True)
class DataFile:
    """A packed file in the folder where torchvision keeps it, with the only content that is accepted.

    torchvision_class: the class that has the download addresses, and the name of the folder.
    """

    torchvision_class: str
    name: str
    sha256: str

    def path(self, data_dir: Path) -> Path:
        return data_dir / self.torchvision_class / "raw" / self.name


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
    return [file for file in files if verified_bytes(file, data_dir) is None]


def verified_bytes(file: DataFile, data_dir: Path) -> bytes | None:
    """Read a packed file once and verify these bytes; None if there is no such file.

    Raises DataError if the file cannot be read or its SHA-256 is not the expected one.
    """
    path = file.path(data_dir)
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror} (errno {error.errno})\n{how_to_provide([file], data_dir)}"
        ) from error
    sha256 = hashlib.sha256(packed).hexdigest()
    if sha256 != file.sha256:
        raise DataError(
            f"{path}: its {len(packed)} bytes have SHA-256 {sha256[:12]}, expected {file.sha256[:12]}: "
            "delete the file and it will be downloaded again, or put the right file there"
        )
    return packed


def how_to_provide(files: Sequence[DataFile], data_dir: Path) -> str:
    """Return the lines of an error message that name the remedies for missing files."""
    folder = files[0].path(data_dir.absolute()).parent
    return (
        f"Put {', '.join(file.name for file in files)} into {folder}, or name a data folder that has them "
        f"under {files[0].torchvision_class}/raw with --data-dir or MNIST_RAY_DATA. "
        "jobs/quickstart.yaml needs no files and no network."
    )
