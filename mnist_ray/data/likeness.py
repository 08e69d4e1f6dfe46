"""Whether an image looks like those that a model was trained on."""

import numpy as np
import numpy.typing as npt

from mnist_ray.data.labelled_images import LabelledImages

RARE = 0.01  # the share of held-out images that may be taken for unlike ones
MOST_TRAINED, MOST_HELD_OUT = 10_000, 1_000  # images that are compared with, which keeps it under a second

Values = npt.NDArray[np.float32]


class Likeness:
    """A test by the nearest training image, calibrated by images that are held out from the training.

    An image is unlike if it is farther from the nearest training image than all but a share RARE of the held-out images
    are. The distance is Euclidean, between pixels. An image that is drawn like the held-out ones is taken for unlike
    with a probability of at most RARE: Bates, Candes, Lei, Romano and Sesia 2023, "Testing for Outliers with Conformal
    p-values".
    """

    def __init__(self, trained: LabelledImages, held_out: LabelledImages) -> None:
        self._trained = _values(_some(trained, MOST_TRAINED))
        self._held_out = np.sort(self._distances(_values(_some(held_out, MOST_HELD_OUT))))

    def holds_for(self, image: npt.NDArray[np.uint8]) -> bool:
        """Report whether an image, (1, 28, 28), looks like the training images."""
        (distance,) = self._distances(_values(image))
        num_as_far = len(self._held_out) - int(np.searchsorted(self._held_out, distance))
        return (num_as_far + 1) / (len(self._held_out) + 1) > RARE

    def _distances(self, values: Values) -> Values:
        """Return each image's squared distance to the nearest training image."""
        squares = np.square(self._trained).sum(axis=1)
        nearest: Values = np.square(values).sum(axis=1) + (squares - 2 * values @ self._trained.T).min(axis=1)
        return nearest


def _some(examples: LabelledImages, at_most: int) -> npt.NDArray[np.uint8]:
    """Take images at equal steps."""
    return examples.images[:: -(-len(examples) // at_most)]


def _values(images: npt.NDArray[np.uint8]) -> Values:
    """(N, 1, 28, 28) or (1, 28, 28) uint8 -> (N, 784) from 0 to 1."""
    return images.reshape(-1, images.shape[-2] * images.shape[-1]).astype(np.float32) / np.float32(255)
