"""Steps on a GPU, captured as CUDA graphs and replayed: one launch instead of one for each kernel.

Written after torch's documentation of torch.cuda.graph; it has not been run yet, for want of a GPU.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

NUM_WARM_UPS = 3  # before a capture, in which nothing may be set up for the first time

# (what a step computes, all that it changes) -> what replays it. The step draws as if it had been computed.
Capture = Callable[[Callable[[], None], Sequence[Tensor]], Callable[[], None]]


def capture_for(device: torch.device, world_size: int) -> Capture | None:
    """How steps on `device` are captured; None where they are not: on CPUs, and among several ranks."""
    return as_cuda_graph if device.type == "cuda" and world_size == 1 else None


def as_cuda_graph(compute: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
    """What warming up changed, and drew, is as it was before. A step that cannot be captured is computed each time."""
    kept, drawn = [tensor.clone() for tensor in changed], torch.cuda.get_rng_state()
    replay = compute
    try:
        replay = _graph_of(compute).replay
    except RuntimeError as error:
        logger.warning("training steps are not captured as CUDA graphs, which makes them slower: %s", error)
    torch.cuda.synchronize()
    with torch.no_grad():
        for tensor, before in zip(changed, kept, strict=True):
            tensor.copy_(before)
    torch.cuda.set_rng_state(drawn)
    return replay


def _graph_of(compute: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    return graph
