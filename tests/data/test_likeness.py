"""Images that are drawn as the training images are taken for like them; others are not."""

from pathlib import Path

import numpy as np
import pytest

from mnist_ray import data
from mnist_ray.data.likeness import RARE, Likeness


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    training = data.load_training("digits", Path())
    split = data.stratified_split(training.labels, 360, seed=0)
    return Likeness(training.take(split.train), training.take(split.validation))


def test_few_images_of_the_same_kind_are_unlike(likeness: Likeness) -> None:
    images = data.load_test("digits", Path()).images
    deviation = np.sqrt(RARE / len(images) + RARE / 360)  # of the share, over tested and over held-out images
    assert np.mean([not likeness.holds_for(image) for image in images]) < RARE + 3 * deviation


def test_images_of_another_kind_are_unlike(likeness: Likeness) -> None:
    images = data.load_test("digits", Path()).images[:50]
    random = np.random.default_rng(0)
    for image in images:
        assert not likeness.holds_for(255 - image)
        assert not likeness.holds_for(random.permuted(image, axis=2))
        assert not likeness.holds_for(random.integers(0, 256, image.shape, dtype=np.uint8))


def test_training_images_are_like_themselves(likeness: Likeness) -> None:
    training = data.load_training("digits", Path())
    split = data.stratified_split(training.labels, 360, seed=0)
    assert all(likeness.holds_for(image) for image in training.images[split.train[:50]])
