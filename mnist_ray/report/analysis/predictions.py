"""What the tested models said of the test images, read from the record: right and wrong, and how sure they were."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load
from scipy.special import softmax

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.rundir import RunDir

NUM_CLASSES = 10
NUM_BINS = 15  # of confidence, as in Guo et al. 2017


@dataclass(frozen=True, eq=False)
class TestedImages:
    """labels: (N,) 0 to 9; missed: (M,) the examples that some model got wrong; images: those, (M, 28, 28) uint8."""

    labels: npt.NDArray[np.uint8]
    missed: npt.NDArray[np.int64]
    images: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model said. labels, said: (N,) 0 to 9; confidence: (N,) the probability that it gave to what it said."""

    labels: npt.NDArray[np.uint8]
    said: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        right: npt.NDArray[np.bool_] = self.said == self.labels
        return right

    def confusion(self) -> npt.NDArray[np.int64]:
        """(true class, said class) -> how often."""
        matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64)
        np.add.at(matrix, (self.labels, self.said), 1)
        return matrix

    def reliability(self) -> list["Bin"]:
        """The bins of confidence that hold something, of NUM_BINS equally wide ones."""
        numbers = np.minimum((self.confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        return [
            Bin(float(self.confidence[inside].mean()), float(self.is_right[inside].mean()), int(inside.sum()))
            for number in range(NUM_BINS)
            if (inside := numbers == number).any()
        ]

    def calibration_error(self) -> float:
        """Expected calibration error, Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3."""
        gaps = sum(each.num_examples * abs(each.accuracy - each.confidence) for each in self.reliability())
        return gaps / len(self.labels)


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence: its mean, the share of right ones, how many."""

    confidence: float
    accuracy: float
    num_examples: int


def images_of_test(run: RunDir, name: str = "test") -> TestedImages | None:
    """Of a test ("test", or a second one's name); None where the run has not got that far. Raises CorruptFileError."""
    blob = (run.stage("tested") or {}).get("examples", {}).get(name)
    if blob is None:
        return None
    try:
        tensors = load(run.blob(blob))
        return TestedImages(tensors["labels"], tensors["missed"], tensors["missed_images"])
    except (SafetensorError, KeyError) as error:
        raise CorruptFileError(f"{run.record}: blob {blob[:12]} holds no test examples ({error})") from None


def predictions(run: RunDir, training_id: str, name: str = "test") -> Predictions | None:
    """Of a tested model; None where there is none. Raises CorruptFileError."""
    images = images_of_test(run, name)
    score: dict[str, Any] = (run.stage("tested") or {}).get("scores", {}).get(training_id, {})
    if images is None or f"{name}_logits" not in score:
        return None
    blob = score[f"{name}_logits"]
    try:
        logits = np.load(io.BytesIO(run.blob(blob)), allow_pickle=False).astype(np.float64)
    except (ValueError, EOFError) as error:
        raise CorruptFileError(f"{run.record}: blob {blob[:12]} holds no logits ({error})") from None
    if logits.shape != (len(images.labels), NUM_CLASSES):
        raise CorruptFileError(f"{run.record}: blob {blob[:12]} holds {logits.shape}, not one row for each test image")
    probabilities = softmax(logits, axis=1)
    return Predictions(images.labels, logits.argmax(axis=1), probabilities.max(axis=1))
