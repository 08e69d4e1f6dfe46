"""Settings of a process that trains, and groups of processes on one machine."""

import contextlib
import ctypes
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mnist_ray.training.kernels.collectives import connected_ranks
from mnist_ray.training.kernels.selection import AUTO, Kernels

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST_KEPT_BYTES = 1 << 30
LOOPBACK = "127.0.0.1"


def prepare_to_train(num_threads: int) -> None:
    """Compute on `num_threads` threads, and keep memory that was freed for the next step.

    glibc returns blocks of the size of a layer's output to the system as soon as they are free, and every step has
    them cleared and mapped anew. Where there is no glibc nothing is set but the threads.
    """
    torch.set_num_threads(num_threads)
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MOST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)


@contextlib.contextmanager
def group_on_this_machine(
    rank: int, world_size: int, meeting_point: Path, timeout_s: float, kernels: Kernels = AUTO
) -> Iterator[None]:
    """In each of `world_size` processes: form a group on CPUs, connected as the ranks of a retraining are.

    A single process needs no group. meeting_point: the path of a file that does not exist yet.
    """
    if world_size == 1:
        yield
        return
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(meeting_point), world_size),  # type: ignore[attr-defined]  # documented, not in __all__
        timeout=timedelta(seconds=timeout_s),
        world_size=world_size,
        rank=rank,
    )
    try:
        with connected_ranks(LOOPBACK) if kernels.collectives else contextlib.nullcontext():
            yield
    finally:
        dist.destroy_process_group()
