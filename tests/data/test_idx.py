"""A malformed or changing IDX file is refused, never half read."""

import gzip
import hashlib
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_ray import data
from mnist_ray.data import files
from mnist_ray.data.idx import read_idx
from mnist_ray.errors import DataError
from tests.data.made_files import drawn, idx, plant_both

IMAGES, LABELS = drawn(12)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        pytest.param(idx(IMAGES[:11]), idx(LABELS), id="fewer images than labels"),
        pytest.param(idx(IMAGES[:, :, :27]), idx(LABELS), id="27 columns"),
        pytest.param(idx(IMAGES.astype(np.int32)), idx(LABELS), id="images of int32"),
        pytest.param(idx(IMAGES), idx(LABELS + np.uint8(5)), id="a class above nine"),
        pytest.param(gzip.compress(gzip.decompress(idx(IMAGES))[:-1]), idx(LABELS), id="a byte short"),
        pytest.param(gzip.compress(gzip.decompress(idx(IMAGES)) + b"\0"), idx(LABELS), id="a byte more"),
        pytest.param(gzip.compress(gzip.decompress(idx(IMAGES))[:9]), idx(LABELS), id="half a header"),
        pytest.param(gzip.compress(b""), idx(LABELS), id="nothing"),
        pytest.param(gzip.compress(b"\x89PNG" * 100), idx(LABELS), id="another format"),
        pytest.param(idx(IMAGES)[:-9], idx(LABELS), id="a packed stream that ends early"),
        pytest.param(b"plain", idx(LABELS), id="not packed"),
    ],
)
def test_malformed_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: bytes, labels: bytes
) -> None:
    plant_both(monkeypatch, tmp_path, "kmnist", images, labels)
    with pytest.raises(DataError, match=r"ubyte\.gz"):
        data.load_training("kmnist", tmp_path)


def test_hashed_bytes_are_the_parsed_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replace the file right after its bytes were hashed, by another of the same form."""
    plant_both(monkeypatch, tmp_path, "kmnist", idx(IMAGES), idx(LABELS))
    file = data.DATA_SETS["kmnist"].training.files[1]

    def hash_and_exchange(content: bytes) -> Any:
        file.path(tmp_path).write_bytes(idx(LABELS[::-1]))
        return hashlib.sha256(content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "hashlib", SimpleNamespace(sha256=hash_and_exchange))
        np.testing.assert_array_equal(read_idx(file, tmp_path), LABELS)
    with pytest.raises(DataError, match=file.name):
        read_idx(file, tmp_path)


def test_changing_file_is_right_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replace and rewrite the file all the time: every result is the right one or a DataError."""
    plant_both(monkeypatch, tmp_path, "kmnist", idx(IMAGES), idx(LABELS))
    path = data.DATA_SETS["kmnist"].training.files[1].path(tmp_path)
    ended = threading.Event()

    def exchange() -> None:
        beside = path.with_name("beside")
        while not ended.is_set():
            for labels in (LABELS[::-1], LABELS):
                beside.write_bytes(idx(labels))
                beside.replace(path)  # another file under the same name
                path.write_bytes(idx(labels))  # the same file, for a moment empty
            ended.wait(0.002)  # time enough to read it as it should be

    outcomes: list[str] = []
    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (len(outcomes) >= 200 and len(set(outcomes)) == 2):
            try:
                is_right = data.load_training("kmnist", tmp_path).labels.tolist() == LABELS.tolist()
                outcomes.append("right" if is_right else "wrong")
            except DataError:
                outcomes.append("refused")
    finally:
        ended.set()
        thread.join()
    assert set(outcomes) == {"right", "refused"}
