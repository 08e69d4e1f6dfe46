"""One process among those that train together, and exchanges of small tensors between them.

Exchanges go through torch.distributed, or, between CPUs, through an `Exchange` that is faster
(kernels/collectives.py).
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mnist_ray.training import progress_counter


@dataclass(frozen=True)
class Worker:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    def share_of(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch (B, ...); the sizes of the parts differ by one at most."""
        start, end = (len(batch) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return batch[start:end]


class Exchange(Protocol):
    """A way to exchange tensors between the ranks that takes the place of torch.distributed."""

    def gathered(self, values: Tensor) -> Tensor:
        """Return the (...) of every rank as (ranks, ...), in the order of ranks. Raises RankLostError."""


_exchange: Exchange | None = None
_exchanging_s = 0.0


@contextlib.contextmanager
def exchanging_over(exchange: Exchange) -> Iterator[None]:
    """Use `exchange` instead of torch.distributed while the block lasts; every rank must do the same."""
    global _exchange
    _exchange = exchange
    try:
        yield
    finally:
        _exchange = None


def exchanging_s() -> float:
    """Return the seconds that this process has spent in exchanges since it began, waiting for others included.

    On GPUs an exchange is only launched in this time.
    """
    return _exchanging_s


def num_ranks() -> int:
    """Return the size of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed_over_ranks(values: Tensor) -> Tensor:
    """Add `values` over all ranks in place; every rank gets the same bits. Without a process group: leave them.

    Raises RankLostError.
    """
    if num_ranks() == 1:
        return values
    with _counted():
        if _exchange is None:
            dist.all_reduce(values)
        else:
            torch.sum(_exchange.gathered(values), dim=0, out=values)
    return values


def gathered_from_ranks(values: Tensor) -> Tensor:
    """Return the (...) of every rank as (ranks, ...), in the order of ranks, the same on every rank.

    Raises RankLostError.
    """
    if num_ranks() == 1:
        return values[None]
    with _counted():
        if _exchange is not None:
            return _exchange.gathered(values)
        gathered = values.new_empty(num_ranks() * values.numel())
        dist.all_gather_into_tensor(gathered, values.flatten())  # gloo gathers nothing but vectors into a vector
    return gathered.view(-1, *values.shape)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradients of `parameters` over all ranks in place, in one exchange. Raises RankLostError."""
    if num_ranks() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters), "ranks that exchange different tensors wait for ever"
    summed = summed_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, summed.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """Count the exchange's beginning and its end as progress, and its seconds."""
    global _exchanging_s
    progress_counter.advance()
    began = time.perf_counter()
    yield
    _exchanging_s += time.perf_counter() - began
    progress_counter.advance()
