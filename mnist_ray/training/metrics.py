"""Sums over examples, merged across ranks, divided once."""

import torch
from torch import Tensor
from torch.nn import functional

from mnist_ray.metrics import Score
from mnist_ray.training.distributed import summed_over_ranks


class ScoreSums:
    """The sums of loss, correct answers and examples, on the device; nothing comes to Python before `merged`."""

    def __init__(self, device: torch.device) -> None:
        # float64 counts exactly up to 2**53 and keeps the sum of many small losses
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, summed_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """summed_loss: () ; logits: (B, classes) float; labels: (B,) int64."""
        self._sums[0] += summed_loss.detach()
        self._sums[1] += (logits.detach().argmax(dim=1) == labels).sum()
        self._sums[2] += labels.shape[0]

    def reset(self) -> None:
        """Set the sums to zero."""
        self._sums.zero_()

    def loss(self) -> Tensor:
        """Return a copy of this rank's summed loss: (), float64."""
        return self._sums[0].clone()

    def merged(self) -> Score:
        """Divide the sums over all ranks once; every rank must call this method, and every rank gets the same score."""
        loss, num_correct, num_examples = summed_over_ranks(self._sums).tolist()
        return Score(loss / num_examples, int(num_correct), int(num_examples))


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy in nats of logits (B, classes) and labels (B,) int64 over the batch: (), 0 where B is 0."""
    return functional.cross_entropy(logits, labels, reduction="sum")
