"""Batch normalisation over the global batch, of torch's own operations; GPUs use torch's SyncBatchNorm instead."""

from typing import Any

import torch
from torch import Tensor, nn

from mnist_ray.training.distributed import num_ranks, summed_over_ranks


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, whose moments in training are those of all ranks' images together.

    On one rank it is torch's own. Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C, H, W) normalised; B may be 0 on some ranks. Updates the running statistics."""
        if not self.training or num_ranks() == 1:
            return super().forward(images)
        pixels = (0, 2, 3)
        count = summed_over_ranks(images.new_tensor(float(images.numel() // images.shape[1])))
        mean = _all_reduced(images.sum(pixels)) / count
        centred = images - mean.view(-1, 1, 1)
        variance = _all_reduced(centred.square().sum(pixels)) / count
        self._update_running_statistics(mean.detach(), variance.detach() * (count / (count - 1)))
        normalised = centred * torch.rsqrt(variance + self.eps).view(-1, 1, 1)
        return normalised * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)


class _AllReduce(torch.autograd.Function):
    """A sum over ranks with a gradient: every rank's loss depends on every rank's values.

    `torch.distributed.nn.functional.all_reduce` warns of its removal, and its replacement is private.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return summed_over_ranks(values.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed_over_ranks(gradients[0].clone())


def _all_reduced(values: Tensor) -> Tensor:
    summed: Tensor = _AllReduce.apply(values)
    return summed
