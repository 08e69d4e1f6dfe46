"""Labelled images as tensors on a device."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ray.data import NUM_CLASSES, LabelledImages, PixelStatistics


@dataclass(frozen=True)
class Examples:
    """Tensors on the worker's device. images: (N, 1, 28, 28) uint8; labels: (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, data: LabelledImages, device: torch.device) -> "Examples":
        """Copy to `device`; on the CPU the arrays are shared."""
        with warnings.catch_warnings():
            # Arrays from Ray's object store are read-only; nothing here writes to them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        return cls(images.to(device), labels.to(device))


@dataclass(frozen=True)
class TrainingData:
    """The examples of one training, the pixel statistics of its training images, and the number of classes."""

    train: Examples
    validation: Examples | None  # None where the final model also learns from the validation split
    statistics: PixelStatistics
    num_classes: int = NUM_CLASSES
