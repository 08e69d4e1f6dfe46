"""Batch normalisation over the global batch and the max pooling behind it, as one function."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.training.distributed import gathered_from_ranks, summed_over_ranks

PIECE_BYTES = 1 << 19  # what is worked on at once when values are needed for a moment only: it stays in the cache
POOL = [2, 2]


def normalised_and_pooled(images: Tensor, norm: nn.BatchNorm2d, weight: Tensor, sign: Tensor) -> Tensor:
    """Normalise and pool as `norm` and 2x2 max pooling do in training, with the statistics of the global batch.

    images: (B, C, H, W), B may be 0 on some ranks, each channel times its `sign` (C,), 1 or -1; weight: (C,), that of
    `norm` times `sign`, nowhere negative -> (B, C, H // 2, W // 2). Updates the running statistics.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    outputs: Tensor
    outputs, mean, variance, count = _NormalisedPool.apply(images, weight, norm.bias, norm.eps)
    _update_running_statistics(norm, mean * sign, variance * (count / (count - 1)))
    return outputs


@torch.no_grad()
def _update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, unbiased_variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(unbiased_variance, norm.momentum)


class _NormalisedPool(torch.autograd.Function):
    """Batch normalisation with max pooling in front: Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1 and
    its gradients in section 3.

    Every sum over a batch is taken over all ranks. Gradients of weight and bias stay local: they are added up with all
    others.

    Scaling by a number that is not negative keeps the order of values, so pooling comes first: only a quarter of the
    values is normalised then, and only that quarter carries gradients from outside.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return outputs (B, C, H // 2, W // 2), mean (C,), biased variance (C,), count of pixels per channel ()."""
        pixels = _pixels(images)
        local_count = images.new_tensor(float(len(pixels)))
        local_mean = pixels.sum(dim=0) / local_count.clamp(min=1.0)
        mean, variance, count = _merged_moments(local_mean, _squares_about(images, local_mean), local_count)
        inverse_std = torch.rsqrt(variance + eps)
        pooled, indices = functional.max_pool2d_with_indices(images, POOL)
        centred = _pixels(pooled).sub_(mean) if len(pixels) else _pixels(pooled)
        outputs = torch.addcmul(bias, centred, weight * inverse_std)
        ctx.save_for_backward(images, indices, centred, mean, inverse_std, weight, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return _images(outputs, pooled.shape), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        images, indices, centred, mean, inverse_std, weight, count = ctx.saved_tensors
        upstream = _pixels(gradients[0])
        total, total_times_centred = upstream.sum(dim=0), (upstream * centred).sum(dim=0)
        mean_gradient, mean_times_centred = summed_over_ranks(torch.stack([total, total_times_centred])) / count
        scale = weight * inverse_std
        scaled = _images(upstream * scale, gradients[0].shape)
        inputs = torch.ops.aten.max_pool2d_with_indices_backward(
            scaled, images, POOL, POOL, [0, 0], [1, 1], False, indices
        )
        slope = -scale * inverse_std.square() * mean_times_centred
        _add_line(inputs, images, slope, -mean_gradient * scale - slope * mean)
        return inputs, total_times_centred * inverse_std, total, None


def _squares_about(images: Tensor, mean: Tensor) -> Tensor:
    """Return (C,): for each channel of images (B, C, H, W) the sum of squared distances from `mean` (C,)."""
    lines, width = _lines(images), images.shape[3]
    means = _per_line(mean, width)
    sums = lines.new_zeros(1, lines.shape[1])
    for piece in lines.split(_lines_per_piece(lines)):
        centred = piece - means
        sums.addmm_(lines.new_ones(1, len(piece)), centred.mul_(centred))
    return sums.view(width, -1).sum(dim=0)


def _add_line(sums: Tensor, images: Tensor, slope: Tensor, intercept: Tensor) -> None:
    """Add slope * images + intercept, both (C,), to `sums`, (B, C, H, W) like images, in place."""
    assert not len(sums) or sums.is_contiguous(memory_format=torch.channels_last)  # or its lines would be a copy
    lines, width = _lines(images), images.shape[3]
    slopes, intercepts = _per_line(slope, width), _per_line(intercept, width)
    size = _lines_per_piece(lines)
    for piece, values in zip(_lines(sums).split(size), lines.split(size), strict=True):
        piece.addcmul_(values, slopes).add_(intercepts)


def _per_line(values: Tensor, width: int) -> Tensor:
    """Repeat (C,) to (width * C,); Tensor.repeat takes eight times as long."""
    return values.expand(width, -1).reshape(-1)


def _lines_per_piece(lines: Tensor) -> int:
    return max(PIECE_BYTES // (lines.shape[1] * lines.element_size()), 1)


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


def _pixels(images: Tensor) -> Tensor:
    """View (B, C, H, W) as (B * H * W, C); where channels are not last in memory: copy."""
    batch, channels, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(batch * height * width, channels)


def _lines(images: Tensor) -> Tensor:
    """View (B, C, H, W) as (B * H, W * C): elementwise work on rows of 32 takes twice as long."""
    batch, channels, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(batch * height, width * channels)


def _images(pixels: Tensor, shape: torch.Size) -> Tensor:
    """Undo `_pixels`: view (B * H * W, C) as `shape`."""
    batch, channels, height, width = shape
    return pixels.view(batch, height, width, channels).permute(0, 3, 1, 2)
