"""Element-wise dropout whose masks are cheap to draw."""

import math

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """As torch.nn.Dropout: each element is zero with probability `rate`, the others are scaled by 1 / (1 - rate).

    On the CPU the masks come from 16 random bits an element, without rounding the rate to as many. torch draws a
    double for each (bernoulli_), which took a fifth of a training step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if not self.training or self.rate == 0.0:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.rate)
        return values * _mask(values, self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def _mask(values: Tensor, rate: float) -> Tensor:
    """0 where an element goes and 1 / (1 - rate) where it stays, in the dtype and the memory layout of `values`.

    Of the 2**16 numbers that an element may draw, rate * 2**16 mean that it goes. What is left of that product behind
    the point is the probability that it is one number more in this mask, so each element goes with the rate exactly.
    """
    count = values.numel()
    num_going = math.floor(rate * 2**16 + float(torch.rand((), dtype=torch.float64)))
    mask = torch.empty_like(values)
    if num_going == 2**16:
        return mask.zero_()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    # in memory order, and comparing in place: a comparison that makes bools costs four times as much
    torch.as_strided(mask, (count,), (1,)).copy_(drawn.ge_(num_going - 2**15))
    return mask.mul_(1.0 / (1.0 - rate))
