"""Arrays in blobs, checked before they are used: whoever sends a folder has chosen its bytes."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from mnist_ray.errors import CorruptFileError

MOST_HEADER_BYTES = 10_000  # of an npy file; ours have 128


def tensors_in(content: bytes, what: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a safetensors file. Raises CorruptFileError, which begins with `what`."""
    try:
        return load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{what} is no safetensors file ({error!s:.200})") from None


def check_weights(content: bytes, what: str) -> None:
    """Check that a network's weights are tensors of numbers. Raises CorruptFileError."""
    for name, tensor in tensors_in(content, what).items():
        if not np.isfinite(tensor).all():
            raise CorruptFileError(f"{what} holds a value in {name!r:.80} that is no number")


def rows_in(content: bytes, shape: Sequence[int], what: str) -> npt.NDArray[np.float32]:
    """Return the float32 array of this shape in an npy file. Raises CorruptFileError.

    The file's own header is compared and not followed: it may ask for more memory than there is.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"its version is {version}")
        header = np.lib.format.read_array_header_1_0(file, max_header_size=MOST_HEADER_BYTES)
    except (ValueError, EOFError) as error:
        raise CorruptFileError(f"{what} is no npy file ({error!s:.200})") from None
    body = content[file.tell() :]
    if header != (tuple(shape), False, np.dtype("<f4")) or len(body) != 4 * math.prod(shape):
        raise CorruptFileError(f"{what} is no float32 array of the shape {tuple(shape)}")
    rows = np.frombuffer(body, dtype="<f4").reshape(shape)
    if not np.isfinite(rows).all():
        raise CorruptFileError(f"{what} holds a value that is no number")
    return rows
