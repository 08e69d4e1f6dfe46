"""Pixel statistics are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray import data
from mnist_ray.errors import DataError
from tests.real_mnist import REAL_RAW, needs_mnist


@settings(max_examples=20, deadline=None)
@given(num_images=st.integers(1, 3000), seed=st.integers(0, 2**31 - 1))
def test_statistics_match_float64(num_images: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (num_images, 1, 28, 28), dtype=np.uint8)
    found = data.pixel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert found.mean == pytest.approx(scaled.mean(), rel=0, abs=1e-12)
    assert found.std == pytest.approx(scaled.std(), rel=0, abs=1e-12)


@needs_mnist
def test_mnist_has_its_known_statistics() -> None:
    found = data.pixel_statistics(data.load_training("mnist", REAL_RAW.parents[1]).images)
    assert (round(found.mean, 4), round(found.std, 4)) == (0.1307, 0.3081)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        data.pixel_statistics(np.zeros((0, 1, 28, 28), dtype=np.uint8))
