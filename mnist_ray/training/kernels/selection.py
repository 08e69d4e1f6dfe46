"""The choice between the fast kernels and plain torch."""

from dataclasses import dataclass

import torch

from mnist_ray.config import KernelMode


@dataclass(frozen=True)
class Kernels:
    """The kernels in use; where one is off, torch's own operations do the same.

    docs/decisions/0006, 0007 and 0016 give reasons, `mnist-ray benchmark kernels` the gain of each.
    """

    channels_last: bool  # in memory
    dropout: bool
    flat_adam: bool
    collectives: bool


AUTO = Kernels(channels_last=True, dropout=True, flat_adam=True, collectives=True)
PLAIN = Kernels(channels_last=False, dropout=False, flat_adam=False, collectives=False)


def kernels_for(mode: KernelMode, device: torch.device) -> Kernels:
    """Return the kernels of a training: those for CPUs on CPUs, plain torch on GPUs or where the mode is plain."""
    return AUTO if mode == "auto" and device.type == "cpu" else PLAIN
