"""Small rotations, scalings and shifts of training images."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from mnist_ray.training.examples import Examples

NUM_DRAWN = 5  # numbers an image: angle, width, height, shift to the right, shift down
MOST_DEGREES, MOST_SCALING, MOST_PIXELS = 10.0, 0.1, 2.0  # at strength 1


class Augmentation:
    """The changes of one epoch's images, which `compute` finds by the examples' indices.

    The numbers behind them are drawn for positions of the epoch's order. So they depend neither on the number of ranks
    nor on how a batch is cut.
    """

    def __init__(self, examples: Examples, strength: float) -> None:
        self._strength = strength
        self._height, self._width = examples.images.shape[2:]
        # static, for steps that are replayed as CUDA graphs; at first nothing is changed
        self._maps = torch.eye(2, 3, device=examples.images.device).repeat(len(examples), 1, 1)

    def begin_epoch(self, order: Tensor, drawn: Tensor) -> None:
        """order: (N,) int64, the examples' indices; drawn: (N, 5) in [-1, 1], on the CPU, a row for each position."""
        self._maps[order] = maps_of(drawn * self._strength, self._height, self._width).to(self._maps.device)

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """images: (B, 1, H, W) uint8, those of the examples at `indices` (B,) -> (B, 1, H, W) float32, 0 to 255."""
        return mapped(images, self._maps[indices])


def maps_of(changes: Tensor, height: int, width: int) -> Tensor:
    """Return for each image the affine map from its new points to its old ones: (N, 2, 3).

    changes: (N, 5), 1 for 10 degrees anticlockwise, 10 % wider, 10 % higher, 2 pixels to the right and 2 down. A point
    (x, y) has -1 and 1 at the edges, y downwards. An image is scaled about its centre, then rotated, then shifted.
    """
    angle = changes[:, 0] * math.radians(MOST_DEGREES)
    across, down = (1 + MOST_SCALING * changes[:, 1:3]).unbind(dim=1)
    right, lower = changes[:, 3] * (2 * MOST_PIXELS / width), changes[:, 4] * (2 * MOST_PIXELS / height)
    cos, sin = angle.cos(), angle.sin()
    rows = [(cos / across, -sin / across), (sin / down, cos / down)]
    return torch.stack([torch.stack([x, y, -(x * right + y * lower)], dim=1) for x, y in rows], dim=1)


def mapped(images: Tensor, maps: Tensor) -> Tensor:
    """Take each new pixel from the old image at its place by `maps` (B, 2, 3), bilinearly, 0 outside.

    images: (B, 1, H, W) uint8 -> (B, 1, H, W) float32. The places are sums of products, each rounded alone: a product
    of matrices (functional.affine_grid) may round otherwise for another number of images.
    """
    height, width = images.shape[2:]
    x, y = (torch.arange(1 - size, size, 2, device=images.device) / size for size in (width, height))
    of_x, of_y, constant = maps.unflatten(1, (1, 1, 2)).unbind(dim=-1)  # each (B, 1, 1, 2)
    places = of_x * x.view(1, -1, 1) + of_y * y.view(-1, 1, 1) + constant
    return functional.grid_sample(images.float(), places, padding_mode="zeros", align_corners=False)
