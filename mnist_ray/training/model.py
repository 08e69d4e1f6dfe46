"""The network: the baseline's two convolutional blocks and one linear layer, 17,706 parameters for ten classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.config import Precision
from mnist_ray.data import NUM_CLASSES
from mnist_ray.training.batch_norm import GlobalBatchNorm2d
from mnist_ray.training.kernels.dropout import Dropout
from mnist_ray.training.kernels.selection import PLAIN, Kernels

# A bias before batch normalisation has no true gradient: Adam makes full steps of the rounding in it, and the running
# mean follows the bias. So these tensors differ between two ways to compute the same steps.
FOLLOW_ROUNDING = frozenset(f"blocks.{number}.{name}" for number in (0, 1) for name in ("0.bias", "1.running_mean"))


class MnistCNN(nn.Module):
    """Two blocks of (32 filters of 3x3 without padding, batch norm, ReLU, 2x2 max pooling, dropout), then linear.

    Takes raw uint8 images: normalisation by the training images' pixel statistics is part of the network, so that
    its saved weights need nothing beside them.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        dropout: float,
        image_mean: float = 0.0,
        image_std: float = 1.0,
        precision: Precision = "float32",
        kernels: Kernels = PLAIN,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        """image_mean, image_std: of the training images' pixels scaled to [0, 1].

        precision: of the convolutions in training; a trained network predicts in float32. kernels: in training, for a
        model that stays on the CPU; predictions are made by torch's own layers.
        """
        super().__init__()
        self.register_buffer("image_mean", torch.tensor(255.0 * image_mean))
        self.register_buffer("image_std", torch.tensor(255.0 * image_std))
        self.blocks = nn.Sequential(
            _Block(1, 32, dropout, precision, kernels),  # 28 -> 26 -> 13
            _Block(32, 32, dropout, precision, kernels),  # 13 -> 11 -> 5
        )
        self.head = nn.Linear(32 * 5 * 5, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 1, 28, 28) uint8 -> logits: (B, num_classes) in the dtype of the weights."""
        scaled = (images.to(self.head.weight.dtype) - self.image_mean) / self.image_std
        logits: Tensor = self.head(self.blocks(scaled).flatten(1))
        return logits


class _Block(nn.Sequential):
    """Convolution, batch norm over the global batch, pooling, ReLU, dropout."""

    def __init__(
        self, channels_in: int, channels_out: int, dropout: float, precision: Precision, kernels: Kernels
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size=3),
            GlobalBatchNorm2d(channels_out),
            nn.MaxPool2d(2),
            nn.ReLU(),  # after pooling, where it is a quarter of the work: both keep order, so they commute
            # element-wise: whole-channel dropout ended worse (99.04 % / 0.0339 on MNIST)
            Dropout(dropout) if kernels.dropout else nn.Dropout(dropout),
        )
        self._precision = precision

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, channels_in, H, W) -> (B, channels_out, (H - 2) // 2, (W - 2) // 2)."""
        convolution, norm, pool, relu, dropout = self
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        if self.training and self._precision == "bfloat16":
            # The factors are rounded, their products added up in float32, and the sums rounded once more.
            rounded = functional.conv2d(images.bfloat16(), convolution.weight.bfloat16())
            convolved = rounded.float() + convolution.bias.view(-1, 1, 1)
        else:
            convolved = convolution(images)
        outputs: Tensor = dropout(relu(pool(norm(convolved))))
        return outputs
