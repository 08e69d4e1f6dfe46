"""Small files in the IDX format, in the place of a data set's own."""

import dataclasses
import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mnist_ray import data
from mnist_ray.data.idx import IdxSource

Array = npt.NDArray[Any]


def idx(values: Array) -> bytes:
    """Return the packed IDX file of an array of uint8 or int32."""
    kind = {np.dtype(np.uint8): 0x08, np.dtype(np.int32): 0x0C}[values.dtype]
    header = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    return gzip.compress(header + values.astype(values.dtype.newbyteorder(">")).tobytes(), compresslevel=1)


def plant(data_dir: Path, source: IdxSource, images: bytes, labels: bytes) -> IdxSource:
    """Write the files of a source. Returns the source that accepts only these."""
    planted = []
    for file, content in ((source.images, images), (source.labels, labels)):
        file.path(data_dir).parent.mkdir(parents=True, exist_ok=True)
        file.path(data_dir).write_bytes(content)
        planted.append(dataclasses.replace(file, sha256=hashlib.sha256(content).hexdigest()))
    return dataclasses.replace(source, images=planted[0], labels=planted[1])


def plant_both(monkeypatch: pytest.MonkeyPatch, data_dir: Path, name: str, images: bytes, labels: bytes) -> None:
    """Write the same files as both halves of a data set and accept only these."""
    halves = data.DATA_SETS[name]
    assert isinstance(halves.training, IdxSource) and isinstance(halves.test, IdxSource)
    replaced = data.DataSet(
        training=plant(data_dir, halves.training, images, labels),
        test=plant(data_dir, halves.test, images, labels),
    )
    monkeypatch.setitem(data.DATA_SETS, name, replaced)


def drawn(num_images: int, num_columns: int | None = None) -> tuple[Array, Array]:
    """Draw images, and labels of one or of `num_columns` columns."""
    random_state = np.random.default_rng(num_images)
    images = random_state.integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
    if num_columns is None:
        return images, random_state.integers(0, 10, num_images, dtype=np.uint8)
    labels = random_state.integers(0, 2**30, (num_images, num_columns), dtype=np.int32)
    labels[:, 0] = random_state.integers(0, 10, num_images)
    return images, labels
