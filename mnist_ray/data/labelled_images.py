"""Images with their classes, in the form that every other module takes them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes. The arrays may be read-only.

    images: (N, 1, 28, 28) uint8. labels: (N,) int64, from 0 on.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "LabelledImages":
        """Copy the M examples with these indices, in their order. indices: (M,) integers."""
        return LabelledImages(self.images[indices], self.labels[indices])


def content_sha256(data: LabelledImages) -> str:
    """Return the SHA-256 over the images' bytes, then the labels as little-endian int64."""
    digest = hashlib.sha256(np.ascontiguousarray(data.images).data)
    digest.update(data.labels.astype("<i8").tobytes())
    return digest.hexdigest()
