"""One set of IDX files, MNIST's own format: a file of images and a file of labels for each part."""

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from mnist_ray.data.files import GZIP_MAGIC
from mnist_ray.data.own_images.arrays import as_labels, check_shape, num_bytes_in, read_images
from mnist_ray.data.own_images.forms import BadFiles, Label, PartName
from mnist_ray.errors import DataError

NAMES: Mapping[PartName, tuple[str, ...]] = {"train": ("train",), "test": ("test", "t10k")}
DTYPES: Mapping[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
}
MOST_LABEL_BYTES = 4 * 10**7


@dataclass(frozen=True)
class IdxPair:
    """The images and the labels of a part."""

    images: Path
    labels: Path
    shape: tuple[int, ...]  # of the images
    values: Sequence[int]  # the labels


@dataclass(frozen=True)
class IdxFiles:
    """The pairs of a folder, packed or not."""

    folder: Path
    pairs: Mapping[PartName, IdxPair]
    is_transposed: bool

    @classmethod
    def found_in(cls, folder: Path, is_transposed: bool) -> "IdxFiles | None":
        """Return the pairs of a folder; None where nothing is named like training images. Raises DataError."""
        names = {
            (part, kind): path
            for part in NAMES
            for kind in ("images", "labels")
            if (path := _only(folder, part, kind)) is not None
        }
        if ("train", "images") not in names:
            return None
        bad = BadFiles({})
        pairs: dict[PartName, IdxPair] = {}
        for part in NAMES:
            images, labels = names.get((part, "images")), names.get((part, "labels"))
            if images is None and labels is None:
                continue
            if images is None or labels is None:
                there, missing = (images, "labels") if labels is None else (labels, "images")
                bad.reasons[str(there)] = f"the {missing} that belong to it are missing (*{NAMES[part][0]}-{missing}*)"
                continue
            try:
                pairs[part] = _checked_pair(images, labels)
            except _WrongFileError as error:
                bad.reasons[str(error.path)] = error.reason
        bad.raise_if_any(folder)
        return cls(folder, pairs, is_transposed)

    @property
    def name(self) -> str:
        turned = ", turned (data.transpose)" if self.is_transposed else ""
        return f"IDX files {', '.join(pair.images.name for pair in self.pairs.values())}{turned}"

    @property
    def labels(self) -> Mapping[PartName, Sequence[Label]]:
        return {part: pair.values for part, pair in self.pairs.items()}

    @property
    def files(self) -> Sequence[Path]:
        return [path for pair in self.pairs.values() for path in (pair.images, pair.labels)]

    def read(self, part: PartName, on_read: Callable[[], object], bad: BadFiles) -> npt.NDArray[np.uint8]:
        pair = self.pairs[part]
        try:
            with _opened(pair.images) as stream:
                stream.read(4 + 4 * len(pair.shape))
                return read_images(stream, pair.shape, self.is_transposed, on_read)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"{pair.images}: {error}: it changed while it was read") from None


class _WrongFileError(Exception):
    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason


def _only(folder: Path, part: PartName, kind: str) -> Path | None:
    """Return the one file of a part's images or labels. Raises DataError where there are two."""
    found = {
        path.name.removesuffix(".gz"): path  # of a packed file and the same one unpacked, the latter
        for path in sorted(folder.iterdir(), reverse=True)
        if path.is_file() and path.name[0] != "." and any(f"{word}-{kind}" in path.name for word in NAMES[part])
    }
    if len(found) > 1:
        several = ", ".join(path.name for path in sorted(found.values()))
        raise DataError(
            f"data.dir {folder} holds several sets of IDX files ({several}): keep one, or name another folder"
        )
    return next(iter(found.values()), None)


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP_MAGIC
    return cast(IO[bytes], gzip.open(path)) if is_packed else path.open("rb")


def _checked_pair(images: Path, labels: Path) -> IdxPair:
    shape, dtype = _checked_header(images)
    try:
        check_shape(shape, dtype)
    except ValueError as error:
        raise _WrongFileError(images, str(error)) from None
    label_shape, label_dtype = _checked_header(labels, MOST_LABEL_BYTES)
    try:
        with _opened(labels) as stream:
            stream.read(4 + 4 * len(label_shape))
            values = as_labels(np.frombuffer(stream.read(), dtype=label_dtype).reshape(label_shape))
    except ValueError as error:
        raise _WrongFileError(labels, str(error)) from None
    if len(values) != shape[0]:
        raise _WrongFileError(labels, f"it has {len(values):,} labels for the {shape[0]:,} images in {images.name}")
    return IdxPair(images, labels, shape, values)


def _checked_header(path: Path, most_bytes: int = 2**40) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type that a file's header states, once the file is found to have as many bytes."""
    try:
        with _opened(path) as stream:
            magic = stream.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
                raise _WrongFileError(path, f"not an IDX file of whole numbers: it begins with {magic.hex()}")
            header = stream.read(4 * magic[3])
            shape = struct.unpack(f">{magic[3]}I", header)
            dtype = DTYPES[magic[2]]
            num_bytes = math.prod(shape) * dtype.itemsize
            if num_bytes > most_bytes or (found := num_bytes_in(stream, num_bytes)) != num_bytes:
                has = f"has {'more' if num_bytes <= most_bytes and found > num_bytes else 'fewer'}"
                raise _WrongFileError(path, f"its header says {shape}, {num_bytes:,} bytes, and it {has}")
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise _WrongFileError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return shape, dtype
