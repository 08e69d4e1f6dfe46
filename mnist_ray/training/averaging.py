"""A moving average of the weights whose width grows with the training."""

import copy
import math

import torch
from torch import Tensor

from mnist_ray.training.model import MnistCNN


class WeightAverage:
    """A model whose tensors are averages of those of a model in training.

    Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1: an average
    with the profile t^gamma over steps t moves by about (gamma + 1) / t of the way at step t. So its width is the same
    share of every training, however long it is, and of the training so far at each of its steps.
    """

    def __init__(self, model: MnistCNN, width: float) -> None:
        """width: the relative width; model: on its final device, of its final dtype and memory layout."""
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._speed = exponent_of(width) + 1
        # where a step finds the share when it is replayed as a CUDA graph
        self._share = torch.ones((), dtype=model.head.weight.dtype, device=model.head.weight.device)
        self._pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))

    def advance(self, step: int) -> None:
        """Go on to a step's number, counted from 1; outside of a CUDA graph."""
        self._share.fill_(min(1.0, self._speed / step))

    @torch.no_grad()
    def move(self) -> None:
        """Move towards the model in training: numbers by the step's share, counts at once."""
        for average, current in self._pairs:
            if average.is_floating_point():
                average.lerp_(current, self._share)
            else:
                average.copy_(current)


def exponent_of(width: float) -> float:
    """Return gamma of the profile t^gamma whose standard deviation is `width` times the length of the training.

    width = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) (Karras et al. 2024, appendix C), solved by bisection; it
    falls with gamma from 0.2887 at 0. width: above 0, at most 0.28.
    """
    low, high = 0.0, 1 / width
    while low < (middle := (low + high) / 2) < high:
        if math.sqrt((middle + 1) / (middle + 3)) / (middle + 2) > width:
            low = middle
        else:
            high = middle
    return low


def _tensors(model: MnistCNN) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
