"""Images to train on: MNIST's from a folder, or made up where there is none."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.data import LabelledImages
from mnist_ray.data.idx import parse_idx


def read_mnist(folder: Path) -> LabelledImages:
    """Read MNIST's training images from IDX files at any depth, packed or not. Raises OSError, ValueError."""
    images, labels = (_read(folder, name) for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"))
    return LabelledImages(images.reshape(-1, 1, 28, 28).copy(), labels.astype(np.int64))


def _read(folder: Path, name: str) -> Any:
    found = sorted(folder.rglob(f"{name}*"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no file {name} or {name}.gz: pass the folder of MNIST's IDX files")
    path = next((each for each in found if "MNIST" in each.parts), found[0])  # KMNIST's files have the same names
    return parse_idx(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def made_up(num_images: int) -> LabelledImages:
    """Make images of ten noisy patterns, which a network can learn."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, num_images)
    patterns = generator.integers(0, 128, (10, 1, 28, 28))
    noise = generator.integers(0, 128, (num_images, 1, 28, 28))
    return LabelledImages((patterns[labels] + noise).astype(np.uint8), labels.astype(np.int64))
