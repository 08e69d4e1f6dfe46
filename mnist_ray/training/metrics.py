"""Sums over examples, merged across ranks, divided once."""

import torch
from torch import Tensor
from torch.nn import functional

from mnist_ray.metrics import Score
from mnist_ray.training.kernels.collectives import summed_over_ranks


class ScoreSums:
    """Adds loss, correct answers and examples on the device; nothing comes to Python before `merged`."""

    def __init__(self, device: torch.device) -> None:
        # float64 counts exactly up to 2**53 and keeps the sum of many small losses
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, summed_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """summed_loss: () ; logits: (B, 10) float; labels: (B,) int64."""
        self._sums[0] += summed_loss.detach()
        self._sums[1] += (logits.detach().argmax(dim=1) == labels).sum()
        self._sums[2] += labels.shape[0]

    def reset(self) -> None:
        """Begin again with nothing."""
        self._sums.zero_()

    def tensors(self) -> list[Tensor]:
        return [self._sums]

    def merged(self) -> Score:
        """The score over all ranks; every rank must call it, and every rank gets the same."""
        loss, num_correct, num_examples = summed_over_ranks(self._sums).tolist()
        return Score(loss / num_examples, int(num_correct), int(num_examples))


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """logits: (B, 10), labels: (B,) int64 -> (): cross-entropy summed, not averaged; 0 for an empty batch."""
    return functional.cross_entropy(logits, labels, reduction="sum")
