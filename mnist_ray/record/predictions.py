"""The predictions of the tested models on the test images, read from the record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp

from mnist_ray.errors import CorruptFileError
from mnist_ray.metrics import Score
from mnist_ray.record.arrays import rows_in, tensors_in
from mnist_ray.record.rundir import RunDir

NUM_CLASSES = 10
NUM_BINS = 15  # of confidence, as in Guo et al. 2017


@dataclass(frozen=True, eq=False)
class TestedImages:
    """The labels of a test, and those of its images that a model got wrong."""

    labels: npt.NDArray[np.uint8]  # (N,) 0 to 9
    missed: npt.NDArray[np.int64]  # (M,) the numbers of the examples that some model got wrong
    images: npt.NDArray[np.uint8]  # (M, 28, 28) these examples

    def image(self, number: int) -> npt.NDArray[np.uint8]:
        """Return one missed example's image, (28, 28)."""
        image: npt.NDArray[np.uint8] = self.images[self.missed == number][0]
        return image


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence."""

    confidence: float  # their mean
    accuracy: float  # the share of right ones
    num_examples: int


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one model, or of an ensemble, on one test."""

    labels: npt.NDArray[np.uint8]  # (N,) 0 to 9
    log_probabilities: npt.NDArray[np.float64]  # (N, 10) of the classes

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(N,) the most probable class."""
        predicted: npt.NDArray[np.int64] = self.log_probabilities.argmax(axis=1)
        return predicted

    @cached_property
    def confidence(self) -> npt.NDArray[np.float64]:
        """(N,) the probability of the predicted class."""
        confidence: npt.NDArray[np.float64] = np.exp(self.log_probabilities.max(axis=1))
        return confidence

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """(N,) the cross-entropy of each image, in nats."""
        losses: npt.NDArray[np.float64] = -self.log_probabilities[np.arange(len(self.labels)), self.labels]
        return losses

    @property
    def score(self) -> Score:
        return Score(float(self.losses.mean()), int(self.is_right.sum()), len(self.labels))

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """(N,) whether each prediction is right."""
        right: npt.NDArray[np.bool_] = self.predicted == self.labels
        return right

    @property
    def num_wrong(self) -> int:
        return int((~self.is_right).sum())

    def confusion(self) -> npt.NDArray[np.int64]:
        """Return the counts by (true class, predicted class), (10, 10)."""
        matrix = np.zeros((self.log_probabilities.shape[1],) * 2, dtype=np.int64)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    def reliability(self) -> list[Bin]:
        """Return the bins of confidence that hold an example, of NUM_BINS equally wide ones."""
        numbers = np.minimum((self.confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        return [
            Bin(float(self.confidence[inside].mean()), float(self.is_right[inside].mean()), int(inside.sum()))
            for number in range(NUM_BINS)
            if (inside := numbers == number).any()
        ]

    def calibration_error(self) -> float:
        """Return the expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", (3))."""
        gaps = sum(each.num_examples * abs(each.accuracy - each.confidence) for each in self.reliability())
        return gaps / len(self.labels)


def images_of_test(run: RunDir, test: str = "test") -> TestedImages | None:
    """Read the images of the test split or of a second test; None where the run has not got that far.

    Raises CorruptFileError.
    """
    tested = run.state.tested
    if tested is None or test not in tested.examples:
        return None
    blob = tested.examples[test]
    what = f"{run.paths.record}: blob {blob[:12]}"
    tensors = tensors_in(run.blob(blob), what)
    try:
        images = TestedImages(tensors["labels"], tensors["missed"], tensors["missed_images"])
    except KeyError as error:
        raise CorruptFileError(f"{what} holds no test examples ({error})") from None
    if not _are_examples(images):
        raise CorruptFileError(f"{what} holds labels, numbers or images of another form than test examples have")
    return images


def _are_examples(tested: TestedImages) -> bool:
    labels, missed, images = tested.labels, tested.missed, tested.images
    return (
        [str(array.dtype) for array in (labels, missed, images)] == ["uint8", "int64", "uint8"]
        and (labels.ndim, missed.ndim) == (1, 1)
        and images.shape == (len(missed), 28, 28)
        and len(labels) > 0
        and bool((labels < NUM_CLASSES).all() and ((missed >= 0) & (missed < len(labels))).all())
    )


def predictions(run: RunDir, training_id: str, test: str = "test") -> Predictions | None:
    """Read a model's predictions on a test; None where there are none. Raises CorruptFileError."""
    images, tested = images_of_test(run, test), run.state.tested
    score = tested.scores.get(training_id, {}).get(test) if tested else None
    if images is None or score is None:
        return None
    what = f"{run.paths.record}: blob {score.logits[:12]}"
    logits = rows_in(run.blob(score.logits), (len(images.labels), NUM_CLASSES), what)
    found = Predictions(images.labels, log_softmax(logits.astype(np.float64), axis=1))
    if not np.isin(np.flatnonzero(~found.is_right), images.missed).all():
        raise CorruptFileError(f"{what} misses images that are not among the missed ones on record")
    return found


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Return the predictions of models together: the mean of their probabilities. All are of the same images."""
    together = logsumexp([each.log_probabilities for each in members], axis=0) - math.log(len(members))
    return Predictions(members[0].labels, together)
