"""The network: the origin's two convolutional blocks and one linear layer, 17,706 parameters."""

import torch
from torch import Tensor, nn

from mnist_ray.learning.dropout import Dropout

NUM_CLASSES = 10


class MnistCNN(nn.Module):
    """Two blocks of (32 filters of 3x3 without padding, batch norm, ReLU, 2x2 max pooling, dropout), then linear.

    Takes raw uint8 images: normalisation by the training images' pixel statistics is part of the network, so that
    its saved weights need nothing beside them.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, dropout: float, image_mean: float = 0.0, image_std: float = 1.0) -> None:
        """image_mean, image_std: of the training images' pixels scaled to [0, 1]."""
        super().__init__()
        self.register_buffer("image_mean", torch.tensor(255.0 * image_mean))
        self.register_buffer("image_std", torch.tensor(255.0 * image_std))
        self.blocks = nn.Sequential(
            _block(1, 32, dropout),  # 28 -> 26 -> 13
            _block(32, 32, dropout),  # 13 -> 11 -> 5
        )
        self.head = nn.Linear(32 * 5 * 5, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 1, 28, 28) uint8 -> logits: (B, 10) in the dtype of the weights."""
        scaled = (images.to(self.head.weight.dtype) - self.image_mean) / self.image_std
        logits: Tensor = self.head(self.blocks(scaled).flatten(1))
        return logits


def _block(channels_in: int, channels_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3),
        nn.BatchNorm2d(channels_out),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),  # after pooling, where it is a quarter of the work: both keep order, so they commute
        Dropout(dropout),  # element-wise: whole-channel dropout ended worse (99.04 % / 0.0339 on MNIST)
    )
