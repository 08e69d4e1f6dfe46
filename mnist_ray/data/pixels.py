"""Statistics of pixels, with which a model normalizes its input."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnist_ray.errors import DataError

CHUNK_PIXELS = 2**20  # np.bincount copies its argument to 8 bytes a pixel


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and (population) standard deviation of all pixels, scaled from 0 .. 255 to [0, 1]."""

    mean: float
    std: float


def pixel_statistics(images: npt.NDArray[np.uint8]) -> PixelStatistics:
    """Compute the statistics from integer sums, exactly and so equally on every machine.

    images: uint8 of any shape. Raises DataError if there are none.
    """
    if images.size == 0:
        raise DataError("pixel statistics of no images: the training split is empty")
    counts = np.zeros(256, dtype=np.int64)
    pixels = images.reshape(-1)
    for start in range(0, pixels.size, CHUNK_PIXELS):
        counts += np.bincount(pixels[start : start + CHUNK_PIXELS], minlength=256)
    # Python's integers, whose divisions are rounded once.
    total = sum(value * count for value, count in enumerate(counts.tolist()))
    total_of_squares = sum(value**2 * count for value, count in enumerate(counts.tolist()))
    scale = 255 * pixels.size
    return PixelStatistics(total / scale, math.sqrt(pixels.size * total_of_squares - total**2) / scale)
