"""The stratified split of the training half into training and validation examples."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnist_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of the examples that are trained on and of those that are held out.

    train, validation: sorted int64 indices. sha256: over both, one after the other, as little-endian int64.
    """

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    sha256: str


def check_num_validation(num_validation: int, num_examples: int, num_classes: int) -> None:
    """Check that both sides of a split get an example of each class. Raises DataError that names the bounds."""
    most = num_examples - num_classes
    if not 0 < num_classes <= num_validation <= most:
        raise DataError(
            f"data.num_validation is {num_validation}: of {num_examples} examples in {num_classes} classes, "
            f"{num_classes} to {most} can be held out; choose a number between these"
        )


def stratified_split(labels: npt.NDArray[np.int64], num_validation: int, seed: int) -> Split:
    """Hold out `num_validation` examples, each class in proportion. labels: (N,) integers.

    Raises DataError if a side would have fewer examples than there are classes, or a class has just one.
    """
    _, class_counts = np.unique(labels, return_counts=True)
    check_num_validation(num_validation, len(labels), len(class_counts))
    if class_counts.min() < 2:
        raise DataError("a class of the training data has one example, and a split needs two of each class")
    from sklearn.model_selection import train_test_split  # takes 2 s to import

    train, validation = train_test_split(
        np.arange(len(labels), dtype=np.int64), test_size=num_validation, random_state=seed, stratify=labels
    )
    train, validation = np.sort(train), np.sort(validation)
    digest = hashlib.sha256(train.astype("<i8").tobytes() + validation.astype("<i8").tobytes())
    return Split(train, validation, digest.hexdigest())
