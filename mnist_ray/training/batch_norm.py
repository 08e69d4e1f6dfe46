"""Batch normalisation over the global batch on CPUs; GPUs use torch's SyncBatchNorm instead.

torch's own adds up a channel's values one after another where channels are last in memory: ten losses in float32 then
differ by up to 1.3e-3 from those in float64, and by 1e-6 where its moments are added up row by row
(docs/decisions/0003-batch-normalisation.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.training.distributed import gathered_from_ranks, num_ranks, summed_over_ranks


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, whose moments in training are those of all ranks' images together.

    On one rank it is torch's own, unless channels are last in memory. Ioffe and Szegedy 2015, "Batch Normalization",
    algorithm 1.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C, H, W) normalised; B may be 0 on some ranks. Updates the running statistics."""
        is_torchs_exact = num_ranks() == 1 and not images.is_contiguous(memory_format=torch.channels_last)
        if not self.training or is_torchs_exact:
            return super().forward(images)
        outputs: Tensor
        outputs, mean, variance, count = _Normalised.apply(images, self.weight, self.bias, self.eps)
        self._update_running_statistics(mean, variance * (count / (count - 1)))
        return outputs

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)


class _Normalised(torch.autograd.Function):
    """Normalisation by the moments of all ranks' pixels: one exchange forward and one backward.

    Gradients of weight and bias stay local: they are added up with all others.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return outputs (B, C, H, W), mean (C,), biased variance (C,) and the count of pixels per channel ()."""
        mean, variance, count = _global_moments(images)
        ctx.save_for_backward(images, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return functional.batch_norm(images, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Ioffe and Szegedy 2015, section 3, with the batch's sums taken over all ranks."""
        images, weight, mean, variance, count = ctx.saved_tensors
        inverse_std = torch.rsqrt(variance + ctx.eps)
        if num_ranks() == 1:
            inputs, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradients[0], images, weight, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
            )
            return inputs, of_weight, of_bias, None
        upstream, centred = gradients[0], images - mean.view(-1, 1, 1)
        of_bias, of_weight = upstream.sum(PIXELS), (upstream * centred).sum(PIXELS) * inverse_std
        mean_gradient, mean_slope = summed_over_ranks(torch.stack([of_bias, of_weight])) / count
        centred.mul_((-mean_slope * inverse_std).view(-1, 1, 1)).add_(upstream).sub_(mean_gradient.view(-1, 1, 1))
        return centred.mul_((weight * inverse_std).view(-1, 1, 1)), of_weight, of_bias, None


PIXELS = (0, 2, 3)  # the axes over which a channel is normalised


def _global_moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and count of pixels per channel () of all ranks' images (B, C, H, W).

    The moments of each column of pixels are merged, then those of the ranks, in one exchange and without a difference
    of large squares: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance".
    """
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
    if batch:
        columns = torch.batch_norm_update_stats(rows, None, None, 0.0)
    else:
        columns = (rows.new_zeros(width * channels), rows.new_zeros(width * channels))
    means, variances = (each.view(width, channels) for each in columns)
    mean = means.mean(dim=0)
    variance = (variances + (means - mean).square()).mean(dim=0)
    moments = gathered_from_ranks(torch.cat([mean, variance, mean.new_full((1,), len(rows) * width)]))
    shares = moments[:, -1:] / moments[:, -1].sum()
    merged = (moments[:, :channels] * shares).sum(dim=0)
    spread = moments[:, channels:-1] + (moments[:, :channels] - merged).square()
    return merged, (spread * shares).sum(dim=0), moments[:, -1].sum()
