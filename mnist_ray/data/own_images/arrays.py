"""Arrays of images in files: read in pieces, so that neither a large nor a lying file takes memory."""

import math
from collections.abc import Callable
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from mnist_ray.data.labelled_images import IMAGE_SHAPE
from mnist_ray.data.own_images.grey import in_network_form

PIECE_BYTES = 2**22
MOST_IMAGE_BYTES = 64 * 10**6  # of one image
MOST_IMAGES = 10**7


def check_shape(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    """Check that an array holds images: (N, H, W) or (N, H, W, 1, 3 or 4) uint8. Raises ValueError."""
    if dtype != np.uint8:
        raise ValueError(f"its values are {dtype}, and images are uint8: save round(255 * x) as uint8")
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4))
    if not fits or not all(shape) or shape[0] > MOST_IMAGES or math.prod(shape[1:]) > MOST_IMAGE_BYTES:
        raise ValueError(f"its shape is {shape}, and images are (N, height, width) or (N, height, width, 1, 3 or 4)")


def num_bytes_in(stream: IO[bytes], most: int) -> int:
    """Count what is left of a stream, up to `most` + 1 bytes, without keeping it."""
    total = 0
    while total <= most and (piece := stream.read(min(PIECE_BYTES, most + 1 - total))):
        total += len(piece)
    return total


def read_images(
    stream: IO[bytes], shape: tuple[int, ...], is_transposed: bool, on_read: Callable[[], object]
) -> npt.NDArray[np.uint8]:
    """Read images that follow one another -> (N, 1, 28, 28). `num_bytes_in` has to have shown that they are there.

    shape: (N, H, W) or (N, H, W, channels). is_transposed: rows and columns are exchanged, as EMNIST has them. Raises
    ValueError where the stream ends too early.
    """
    images = np.empty((shape[0], 1, *IMAGE_SHAPE), dtype=np.uint8)
    image_bytes = math.prod(shape[1:])
    num_together = max(1, PIECE_BYTES // image_bytes)
    for first in range(0, shape[0], num_together):
        num = min(num_together, shape[0] - first)
        piece = np.frombuffer(_read_exactly(stream, num * image_bytes), dtype=np.uint8).reshape(num, *shape[1:])
        if is_transposed:
            piece = piece.swapaxes(1, 2)
        if piece.shape[1:] == IMAGE_SHAPE:
            images[first : first + num, 0] = piece
        else:
            for number, image in enumerate(piece, start=first):
                grey = image[..., 0] if image.shape[2:] == (1,) else image
                images[number, 0] = in_network_form(Image.fromarray(np.ascontiguousarray(grey)))
        for _ in range(num):
            on_read()
    return images


def _read_exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    pieces = []
    while num_bytes > 0 and (piece := stream.read(num_bytes)):
        pieces.append(piece)
        num_bytes -= len(piece)
    if num_bytes:
        raise ValueError(f"it ends {num_bytes:,} bytes too early")
    return b"".join(pieces)


def as_labels(values: npt.NDArray[np.generic]) -> list[int]:
    """Return labels, (N,) or (N, 1) whole numbers, as a list. Raises ValueError."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"its labels are {values.dtype} of shape {values.shape}, and one whole number an image is needed"
        )
    return [int(value) for value in values]
