"""The embedded digits are the same bytes on every machine."""

from pathlib import Path

import numpy as np
import pytest

from mnist_ray import data
from mnist_ray.data import digits
from mnist_ray.errors import DataError


def test_digits_need_no_files(tmp_path: Path) -> None:
    data.fetch("digits", tmp_path / "nowhere")
    training = data.load_training("digits", tmp_path / "nowhere")
    test = data.load_test("digits", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert (training.images.shape, test.images.shape) == ((1437, 1, 28, 28), (360, 1, 28, 28))
    assert len(data.stratified_split(training.labels, 180, seed=0).train) == 1257
    for half in (training, test):
        assert (half.images.dtype.name, half.labels.dtype.name) == ("uint8", "int64")
        assert set(half.labels.tolist()) == set(range(10))
        assert half.images.max() == 255
        assert not half.images[:, :, :2].any() and not half.images[:, :, :, -2:].any()
    assert np.bincount(test.labels).min() >= 35
    seen = {image.tobytes() for image in training.images}
    assert not [image for image in test.images if image.tobytes() in seen]


def test_digits_of_another_release_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digits, "TEST_SEED", 1)
    with pytest.raises(DataError, match="scikit-learn"):
        data.load_training("digits", tmp_path)
