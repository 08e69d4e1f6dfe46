"""What a process that trains sets for itself."""

import contextlib
import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST_KEPT_BYTES = 1 << 30


def prepare_to_train(num_threads: int) -> None:
    """Compute on so many threads, and keep memory that was freed for the next step.

    glibc returns blocks of the size of a layer's output to the system as soon as they are free, and every step has
    them cleared and mapped anew. Where there is no glibc nothing is set but the threads.
    """
    torch.set_num_threads(num_threads)
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MOST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)
