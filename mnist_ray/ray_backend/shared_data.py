"""A stage's images in Ray's object store: put there once by the driver, read by every process without a copy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from mnist_ray.pipeline.tasks import TrainingImages

if TYPE_CHECKING:
    import torch

    from mnist_ray.training.examples import TrainingData


@dataclass(frozen=True)
class SharedImages:
    """A reference to images as numpy arrays; torch tensors would be copied on reading."""

    reference: "ray.ObjectRef[TrainingImages]"

    @classmethod
    def put(cls, images: TrainingImages) -> "SharedImages":
        return cls(ray.put(images))

    def tensors(self, device: "torch.device") -> "TrainingData":
        """Return the images on a device; on the CPU they are read from the store, without a copy."""
        from mnist_ray.pipeline.execution import tensors_of  # torch takes 3 s to import, and the driver needs none yet

        return tensors_of(ray.get(self.reference), device)
