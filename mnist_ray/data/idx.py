"""The IDX format, in which MNIST and its relatives are kept: arrays of images and of labels."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnist_ray.data.files import DataFile, how_to_provide, verified_content
from mnist_ray.data.labelled_images import IMAGE_SHAPE, NUM_CLASSES, LabelledImages
from mnist_ray.errors import DataError

DTYPES: Mapping[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}


@dataclass(frozen=True)
class IdxSource:
    """Examples `start` to `stop` of a pair of IDX files.

    The labels are (N,), or (N, 8) in QMNIST (class, writer, position in NIST's files ...).
    """

    images: DataFile
    labels: DataFile
    start: int = 0
    stop: int | None = None

    @property
    def files(self) -> tuple[DataFile, ...]:
        return (self.images, self.labels)

    def read(self, data_dir: Path) -> LabelledImages:
        """Read the examples from verified files. Raises DataError."""
        images, labels = read_idx(self.images, data_dir), read_idx(self.labels, data_dir)
        if images.shape[1:] != IMAGE_SHAPE or images.dtype != np.uint8:
            raise DataError(f"{self.images.path(data_dir)}: {images.dtype} of {images.shape}, not 28x28 images")
        classes = (labels if labels.ndim == 1 else labels[:, 0]).astype(np.int64)
        if len(classes) != len(images) or not np.isin(classes, range(NUM_CLASSES)).all():
            raise DataError(
                f"{self.labels.path(data_dir)}: {len(classes)} labels for {len(images)} images, "
                f"classes {sorted(set(classes.tolist()))[:20]}, expected 0 to {NUM_CLASSES - 1}"
            )
        part = slice(self.start, self.stop)
        return LabelledImages(images[part, np.newaxis], classes[part])


def read_idx(file: DataFile, data_dir: Path) -> npt.NDArray[Any]:
    """Read a verified IDX file as an array of its own shape: uint8, or big-endian int32. Raises DataError."""
    path = file.path(data_dir)
    content = verified_content(file, data_dir)
    if content is None:
        raise DataError(f"{path} is not there.\n{how_to_provide([file], data_dir)}")
    try:
        return parse_idx(content)
    except (struct.error, ValueError) as error:
        raise DataError(f"{path} is not an IDX file: {error}") from error


def parse_idx(content: bytes) -> npt.NDArray[Any]:
    """Parse an unpacked IDX file: two zero bytes, a type, the number of dimensions, their sizes, the values.

    Sizes are big-endian uint32. Format: "the IDX file format" at the end of the original MNIST page. Raises
    ValueError or struct.error if the parts do not fit.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES:
        raise ValueError(f"magic number {content[:4].hex()}")
    dtype, num_dimensions = DTYPES[content[2]], content[3]
    header_bytes = 4 + 4 * num_dimensions
    shape = struct.unpack(f">{num_dimensions}I", content[4:header_bytes])
    if len(content) != header_bytes + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes do not hold an array of {shape}")
    return np.frombuffer(content, dtype=dtype, offset=header_bytes).reshape(shape)
