"""A content hash covers all that training depends on."""

import numpy as np

from mnist_ray import data
from mnist_ray.data import LabelledImages
from tests.data.made_files import drawn


def test_hash_covers_images_labels_and_order() -> None:
    images, labels = drawn(12)
    examples = LabelledImages(images[:, np.newaxis], labels.astype(np.int64))
    order = np.arange(len(examples))
    other_labels = LabelledImages(examples.images, (examples.labels + 1) % 10)
    hashes = [
        data.content_sha256(found)
        for found in (examples, examples.take(order[::-1]), examples.take(order[:-1]), other_labels)
    ]
    assert len(set(hashes)) == 4
    assert data.content_sha256(examples.take(order)) == hashes[0]
