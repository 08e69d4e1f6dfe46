"""The embedded digits, read once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_ray.data import LabelledImages, load_training, pixel_statistics
from mnist_ray.training.examples import Examples, TrainingData

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def digits() -> LabelledImages:
    """The 1,437 training digits."""
    return load_training("digits", Path())


@pytest.fixture(scope="session")
def few_digits(digits: LabelledImages) -> TrainingData:
    """101 digits to train on, so that the last batch is ragged, and 40 to validate with: seconds for many epochs."""
    train, validation = digits.take(np.arange(101)), digits.take(np.arange(101, 141))
    return TrainingData(Examples.of(train, CPU), Examples.of(validation, CPU), pixel_statistics(train.images))
