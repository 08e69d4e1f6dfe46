"""A group of processes on this machine, connected as ranks of a retraining are."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from mnist_ray.learning.exchange import connected_ranks


@contextlib.contextmanager
def process_group(rank: int, world_size: int, meeting_point: Path, timeout_s: float) -> Iterator[None]:
    """In each of the processes; one alone needs none. meeting_point: a file that is not there yet."""
    if world_size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting_point}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
    try:
        with connected_ranks("127.0.0.1"):
            yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
