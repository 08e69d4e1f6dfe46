"""The choice between the fast kernels and plain torch."""

from dataclasses import dataclass

import torch

from mnist_ray.config import KernelMode


@dataclass(frozen=True)
class Kernels:
    """The kernels in use; where one is off, torch's own operations do the same.

    docs/decisions/0003, 0006 and 0007 give reasons, `mnist-ray benchmark kernels` the gain of each.
    """

    batch_norm_pool: bool
    channels_last: bool  # in memory; batch_norm_pool works on this layout, whatever comes in
    dropout: bool
    flat_adam: bool
    collectives: bool


AUTO = Kernels(batch_norm_pool=True, channels_last=True, dropout=True, flat_adam=True, collectives=True)
PLAIN = Kernels(batch_norm_pool=False, channels_last=False, dropout=False, flat_adam=False, collectives=False)


def kernels_for(mode: KernelMode, device: torch.device) -> Kernels:
    """Return the kernels of a training: those for CPUs on CPUs, plain torch on GPUs or where the mode is plain."""
    return AUTO if mode == "auto" and device.type == "cpu" else PLAIN
