"""One .npz archive, with the names of Keras (x_train, y_train) or of MedMNIST (train_images, train_labels)."""

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from mnist_ray.data.own_images.arrays import as_labels, check_shape, num_bytes_in, read_images
from mnist_ray.data.own_images.forms import BadFiles, Label, PartName
from mnist_ray.errors import DataError

Names = Mapping[PartName, tuple[str, str]]  # of the images and of the labels of each part
KERAS: Names = {"train": ("x_train", "y_train"), "val": ("x_val", "y_val"), "test": ("x_test", "y_test")}
MEDMNIST: Names = {
    "train": ("train_images", "train_labels"),
    "val": ("val_images", "val_labels"),
    "test": ("test_images", "test_labels"),
}
MOST_LABEL_BYTES = 10**8
TROUBLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class NpzArchive:
    """An archive's arrays."""

    path: Path
    shapes: Mapping[PartName, tuple[int, ...]]  # of the images
    members: Mapping[PartName, str]
    labels: Mapping[PartName, Sequence[Label]]
    is_transposed: bool

    @classmethod
    def found_in(cls, folder: Path, is_transposed: bool) -> "NpzArchive | None":
        """Return the one archive of a folder; None where there is none. Raises DataError."""
        paths = sorted(path for path in folder.glob("*.npz") if path.is_file())
        if not paths:
            return None
        if len(paths) > 1:
            several = ", ".join(path.name for path in paths)
            raise DataError(f"data.dir {folder} holds several sets ({several}): keep one, or name another folder")
        [path] = paths
        bad = BadFiles({})
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
                known = next((each for each in (KERAS, MEDMNIST) if {*each["train"]} <= names), None)
                if known is None:
                    raise ValueError(
                        f"it holds {', '.join(sorted(names)[:8]) or 'nothing'}, and either {', '.join(KERAS['train'])} "
                        f"or {', '.join(MEDMNIST['train'])} are needed"
                    )
                parts = {part: names_of for part, names_of in known.items() if {*names_of} & names}
                labels, shapes = {}, {}
                for part, (images_name, labels_name) in parts.items():
                    if missing := {images_name, labels_name} - names:
                        raise ValueError(f"it lacks {missing.pop()}")
                    shapes[part], dtype, _ = _checked_header(archive, images_name, 2**40)
                    _named(images_name, check_shape, shapes[part], dtype)
                    labels[part] = _named(labels_name, as_labels, _small_array(archive, labels_name))
                    if len(labels[part]) != shapes[part][0]:
                        raise ValueError(
                            f"{labels_name} has {len(labels[part]):,} labels, {images_name} {shapes[part][0]:,} images"
                        )
        except TROUBLE as error:
            bad.reasons[str(path)] = getattr(error, "strerror", None) or str(error) or type(error).__name__
        bad.raise_if_any(folder)
        return cls(path, shapes, {part: names[0] for part, names in parts.items()}, labels, is_transposed)

    @property
    def name(self) -> str:
        turned = ", turned (data.transpose)" if self.is_transposed else ""
        return f"the archive {self.path.name} with {', '.join(self.members.values())}{turned}"

    @property
    def files(self) -> Sequence[Path]:
        return [self.path]

    def read(self, part: PartName, on_read: Callable[[], object], bad: BadFiles) -> npt.NDArray[np.uint8]:
        try:
            with zipfile.ZipFile(self.path) as archive, _opened(archive, self.members[part]) as stream:
                _header(stream)
                return read_images(stream, self.shapes[part], self.is_transposed, on_read)
        except TROUBLE as error:
            raise DataError(f"{self.path}: {error}: it changed while it was read") from None


def _named(name: str, function: Callable[..., list[int] | None], *arguments: object) -> list[int]:
    try:
        return function(*arguments) or []
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _opened(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    return tuple(shape), is_fortran, dtype


def _checked_header(
    archive: zipfile.ZipFile, name: str, most_bytes: int
) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Return the shape and the type of an array, once the archive is found to have as many bytes. Raises ValueError."""
    with _opened(archive, name) as stream:
        shape, is_fortran, dtype = _header(stream)
        if dtype.hasobject or (is_fortran and len(shape) > 1):
            kind = "Python objects" if dtype.hasobject else "columns first"
            raise ValueError(f"{name} is stored as {kind}: save it again with np.ascontiguousarray")
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > most_bytes or num_bytes_in(stream, num_bytes) != num_bytes:
            raise ValueError(f"the header of {name} says {shape}, {num_bytes:,} bytes, and there are not as many")
    return shape, dtype, num_bytes


def _small_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[np.generic]:
    shape, dtype, num_bytes = _checked_header(archive, name, MOST_LABEL_BYTES)
    with _opened(archive, name) as stream:
        _header(stream)
        return np.frombuffer(stream.read(num_bytes), dtype=dtype).reshape(shape)
