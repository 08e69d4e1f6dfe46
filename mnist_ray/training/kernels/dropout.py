"""Element-wise dropout whose masks are cheap to draw."""

import math

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """torch.nn.Dropout for CPUs: each element is zero with probability `rate`, the others are scaled by 1 / (1 - rate).

    The masks come from 16 random bits an element, without rounding the rate to as many. torch draws a double for each
    (bernoulli_), which took a fifth of a training step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Return `values`, of any shape, with elements dropped in training."""
        return values * draw_mask(values, self.rate) if self.training and self.rate > 0.0 else values

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def draw_mask(values: Tensor, rate: float) -> Tensor:
    """Draw 0 (dropped) or 1 / (1 - rate) (kept) for each element, in the dtype and the memory layout of `values`.

    An element draws one of 2**16 numbers, and rate * 2**16 of them mean that it is dropped. The fraction of that
    product is the probability that this mask counts one number more, so that each element is dropped with the rate
    exactly.
    """
    count = values.numel()
    num_dropping = math.floor(rate * 2**16 + float(torch.rand((), dtype=torch.float64)))
    mask = torch.empty_like(values)
    if num_dropping == 2**16:
        return mask.zero_()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    # in memory order, and comparing in place: a comparison that makes bools costs four times as much
    torch.as_strided(mask, (count,), (1,)).copy_(drawn.ge_(num_dropping - 2**15))
    return mask.mul_(1.0 / (1.0 - rate))
