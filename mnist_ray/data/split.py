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

    The split is that of scikit-learn's `train_test_split(stratify=labels, random_state=seed)`, number for number.
    scikit-learn itself takes 2 s to import, which every run would wait for.

    Raises DataError if a side would have fewer examples than there are classes, or a class has just one.
    """
    _, class_counts = np.unique(labels, return_counts=True)
    check_num_validation(num_validation, len(labels), len(class_counts))
    if class_counts.min() < 2:
        raise DataError("a class of the training data has only one example, but a split needs two of each class")
    random = np.random.RandomState(seed)
    num_trained = _in_proportion(class_counts, len(labels) - num_validation, random)
    num_held_out = _in_proportion(class_counts - num_trained, num_validation, random)
    of_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(class_counts)[:-1])
    shuffled = [indices[random.permutation(len(indices))] for indices in of_class]
    train = np.concatenate([each[:num] for each, num in zip(shuffled, num_trained, strict=True)])
    validation = np.concatenate(
        [each[first : first + num] for each, first, num in zip(shuffled, num_trained, num_held_out, strict=True)]
    )
    return _split_of(np.sort(train), np.sort(validation))


def split_by_part(num_examples: int, validation: npt.NDArray[np.int64]) -> Split:
    """Hold out the examples with the given indices, (M,) sorted: those of a validation part."""
    return _split_of(np.setdiff1d(np.arange(num_examples), validation), validation)


def _split_of(train: npt.NDArray[np.int64], validation: npt.NDArray[np.int64]) -> Split:
    digest = hashlib.sha256(train.astype("<i8").tobytes() + validation.astype("<i8").tobytes())
    return Split(train, validation, digest.hexdigest())


def _in_proportion(
    class_counts: npt.NDArray[np.int64], num_drawn: int, random: np.random.RandomState
) -> npt.NDArray[np.int64]:
    """Return how many of each class to draw: proportional, rounded down, the largest remainders up, ties by lot.

    Source: the mode of the multivariate hypergeometric distribution, as scikit-learn 1.9 draws it.
    """
    proportional = class_counts / class_counts.sum() * num_drawn
    drawn = np.floor(proportional)
    remainders = proportional - drawn
    num_missing = int(num_drawn - drawn.sum())
    for remainder in np.unique(remainders)[::-1]:
        if num_missing == 0:
            break
        (tied,) = np.where(remainders == remainder)
        chosen = random.choice(tied, size=min(len(tied), num_missing), replace=False)
        drawn[chosen] += 1
        num_missing -= len(chosen)
    whole: npt.NDArray[np.int64] = drawn.astype(np.int64)
    return whole
