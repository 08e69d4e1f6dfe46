"""The real MNIST files, for tests of reading and of downloading them."""

import os
from pathlib import Path

import pytest

from mnist_ray.data import DATA_SETS

REAL_RAW = Path(os.environ.get("MNIST_RAY_TEST_DATA", "")) / "MNIST" / "raw"
needs_mnist = pytest.mark.skipif(
    "MNIST_RAY_TEST_DATA" not in os.environ, reason="the real MNIST files are not at $MNIST_RAY_TEST_DATA"
)
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
MNIST_NAMES = [file.name for file in DATA_SETS["mnist"].files]
