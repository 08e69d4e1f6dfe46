"""Training data in Ray's object store: put there once by the driver, read by every process without a copy."""

from dataclasses import dataclass

import ray
import torch

from mnist_ray.data import LabelledImages, PixelStatistics
from mnist_ray.training.loop import Examples, TrainingData


@dataclass(frozen=True)
class SharedData:
    """References to numpy arrays (torch tensors would be copied on reading)."""

    train: ray.ObjectRef[LabelledImages]
    validation: ray.ObjectRef[LabelledImages] | None
    statistics: PixelStatistics

    @classmethod
    def put(cls, train: LabelledImages, validation: LabelledImages | None, statistics: PixelStatistics) -> "SharedData":
        return cls(ray.put(train), None if validation is None else ray.put(validation), statistics)

    def get(self, device: torch.device) -> TrainingData:
        train = Examples.of(ray.get(self.train), device)
        validation = None if self.validation is None else Examples.of(ray.get(self.validation), device)
        return TrainingData(train, validation, self.statistics)
