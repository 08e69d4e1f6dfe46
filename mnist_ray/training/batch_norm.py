"""Batch normalisation over the global batch, of torch's own operations; GPUs use torch's SyncBatchNorm instead."""

from typing import Any

import torch
from torch import Tensor, nn

from mnist_ray.training.distributed import gathered_from_ranks, num_ranks, summed_over_ranks


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, whose moments in training are those of all ranks' images together.

    On one rank it is torch's own. Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C, H, W) normalised; B may be 0 on some ranks. Updates the running statistics."""
        if not self.training or num_ranks() == 1:
            return super().forward(images)
        mean, variance, count = _GlobalMoments.apply(images)
        self._update_running_statistics(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = (images - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return normalised

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)


class _GlobalMoments(torch.autograd.Function):
    """Mean and biased variance of each channel over all ranks' pixels: one exchange forward and one backward.

    Every rank's loss depends on every rank's images, so the gradients of the moments are added up over ranks.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean (C,), biased variance (C,) and the count of pixels per channel () of images (B, C, H, W)."""
        pixels = (0, 2, 3)
        local_count = images.new_tensor(float(images.numel() // images.shape[1]))
        local_mean = images.sum(pixels) / local_count.clamp(min=1.0)
        squares = (images - local_mean.view(-1, 1, 1)).square_().sum(pixels)
        mean, variance, count = _merged_moments(local_mean, squares, local_count)
        ctx.save_for_backward(images, mean, count)
        ctx.mark_non_differentiable(count)
        return mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        images, mean, count = ctx.saved_tensors
        of_mean, of_variance = (summed_over_ranks(torch.stack(gradients[:2])) / count).view(2, -1, 1, 1)
        inputs: Tensor = (images - mean.view(-1, 1, 1)).mul_(2.0 * of_variance).add_(of_mean)
        return inputs


def _merged_moments(mean: Tensor, squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge one rank's mean (C,), squares about that mean (C,) and count (): mean, biased variance and count of all.

    Formula: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance". One exchange, and no
    difference of large squares.
    """
    moments = gathered_from_ranks(torch.cat([mean, squares, count[None]]))
    means, all_squares, counts = moments[:, : len(mean)], moments[:, len(mean) : -1], moments[:, -1:]
    total = counts.sum()
    merged = (means * counts).sum(dim=0) / total
    spread = ((means - merged).square() * counts).sum(dim=0)
    return merged, (all_squares.sum(dim=0) + spread) / total, total
