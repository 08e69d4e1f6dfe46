"""Batch normalisation over the global batch, whatever the number of workers that share it."""

from typing import Any

import torch
from torch import Tensor, nn

from mnist_ray.learning.metrics import gathered_from_ranks, summed_over_ranks


def over_global_batch(model: nn.Module, device: torch.device) -> nn.Module:
    """Make batch normalisation use the statistics of the global batch, so that workers do not change the network.

    Call it once the process group is up, if there is one. Parameters and buffers stay the same objects with the
    same names.
    """
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return synchronised
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, CpuBatchNorm2d.of(child))
    return model


class CpuBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation on the CPU, for one worker and for several.

    torch's SyncBatchNorm has no kernels for the CPU, and its plain batch norm is inexact there with channels last
    in memory: the first epoch's loss on 333 digits came out 2e-5 from that in float64, this one's 1e-7.
    """

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> "CpuBatchNorm2d":
        """The same layer, sharing its parameters and running statistics."""
        synchronised = cls(module.num_features, module.eps, module.momentum)
        synchronised._parameters = module._parameters
        synchronised._buffers = module._buffers
        return synchronised.train(module.training)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), B may be 0 on some ranks -> the same shape."""
        if not self.training:
            return super().forward(images)
        outputs: Tensor
        outputs, mean, variance, count = _GlobalBatchNorm.apply(images, self.weight, self.bias, self.eps)
        self._update_running_statistics(mean, variance * (count / (count - 1)))
        return outputs

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)


class _GlobalBatchNorm(torch.autograd.Function):
    """Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1 and its gradients in section 3, with every sum
    over a batch taken over all ranks. Gradients of weight and bias stay local: DistributedDataParallel adds them.

    Images are handled as (B * H, W * C), and values per channel repeated W times: elementwise work on rows of 32
    takes twice as long.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> outputs like images, mean (C,), biased variance (C,), count of pixels per channel ()."""
        lines, width = _lines(images), images.shape[3]
        local_count = images.new_tensor(float(images.numel() // images.shape[1]))
        local_mean = _per_channel(lines, width) / local_count.clamp(min=1.0)
        centred = lines - local_mean.repeat(width)
        squares = _per_channel(centred.square(), width)
        mean, variance, count = _merged_moments(local_mean, squares, local_count)
        inverse_std = torch.rsqrt(variance + eps)
        offset = local_mean - mean
        scale = weight * inverse_std
        ctx.save_for_backward(centred, offset, inverse_std, weight, count)
        ctx.mark_non_differentiable(mean, variance, count)
        outputs = torch.addcmul((bias + offset * scale).repeat(width), centred, scale.repeat(width))
        return _images(outputs, images.shape), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, offset, inverse_std, weight, count = ctx.saved_tensors
        lines, width = _lines(gradients[0]), gradients[0].shape[3]
        total = _per_channel(lines, width)
        total_times_centred = _per_channel(lines * centred, width) + offset * total
        mean, mean_times_centred = summed_over_ranks(torch.stack([total, total_times_centred])) / count
        scale = weight * inverse_std
        slope = -scale * inverse_std.square() * mean_times_centred
        shift = offset * slope - mean * scale
        inputs = torch.addcmul(shift.repeat(width), lines, scale.repeat(width))
        inputs.addcmul_(centred, slope.repeat(width))
        return _images(inputs, gradients[0].shape), total_times_centred * inverse_std, total, None


def _merged_moments(mean: Tensor, squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One rank's mean (C,), sum of squares about it (C,) and count () -> mean, biased variance and count of all.

    Formula: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance". One exchange, and no
    difference of large squares.
    """
    moments = gathered_from_ranks(torch.cat([mean, squares, count[None]]))
    means, all_squares, counts = moments[:, : len(mean)], moments[:, len(mean) : -1], moments[:, -1:]
    total = counts.sum()
    merged = (means * counts).sum(dim=0) / total
    spread = ((means - merged).square() * counts).sum(dim=0)
    return merged, (all_squares.sum(dim=0) + spread) / total, total


def _lines(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H, W * C); without a copy where channels are last in memory."""
    batch, channels, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(batch * height, width * channels)


def _images(lines: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_lines`."""
    batch, channels, height, width = shape
    return lines.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _per_channel(lines: Tensor, width: int) -> Tensor:
    """(B * H, W * C) -> (C,): the sum over everything but channels."""
    return lines.sum(dim=0).view(width, -1).sum(dim=0)
