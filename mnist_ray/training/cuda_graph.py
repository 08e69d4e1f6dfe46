"""Steps on a GPU, captured as CUDA graphs and replayed: one launch instead of one for each kernel.

Written after torch's documentation of torch.cuda.graph. A capture replays silently what it should not if any part of a
step is not a fixed sequence of kernels, so it is compared with eager steps before it is trusted.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

NUM_WARM_UPS = 3  # before a capture, in which nothing may be set up for the first time
NUM_COMPARED = 10
RAGGED_AT = 4  # the position of the ragged batch among them: what follows a change of size is compared too
# The largest relative difference allowed between ten captured and ten eager steps. Both ways launch the same kernels,
# so they differ by the order of atomic additions at most. Ten float32 steps by other kernels (auto and plain, on a CPU,
# batches of 32 to 512) differed by up to 2e-3 at learning rate 1e-3 and 2.4e-2 at 3e-2. The least of the mistakes that
# the tests make, a learning rate that is 5 % too large, makes 5e-2; a repeated mask, a stale batch and a step number
# from the capture make much more.
TOLERANCE = 3e-2

# from a function that computes one step to a function that replays that step; raises RuntimeError
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class StepTaker(Protocol):
    """A training whose steps can be taken on trial; implemented by mnist_ray.training.loop.Steps."""

    def advance(self) -> None:
        """Prepare the numbers of the next step, outside of what is captured."""

    def compute(self, share: Tensor, global_batch_size: int) -> None:
        """Take the step on the examples at `share`, (B,) int64; only operations on the device."""

    def undone(self) -> AbstractContextManager[None]:
        """Undo on leaving the block whatever was done in it to the model, the optimizer and the random state."""

    def summed_loss(self) -> Tensor:
        """Return a copy of the loss summed so far: ()."""

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the tensors that two ways to compute the same steps leave alike."""


class CapturedStep:
    """The step on batches of one size, captured once and replayed."""

    def __init__(self, steps: StepTaker, batch_size: int, device: torch.device, capture: Capture) -> None:
        """Raises RuntimeError where the step cannot be captured."""
        self._indices = torch.arange(batch_size, device=device)
        self._replay = capture(lambda: steps.compute(self._indices, batch_size))

    def __call__(self, indices: Tensor) -> None:
        """indices: (B,) int64, B the size of batch that was captured."""
        self._indices.copy_(indices)
        self._replay()


def capture_for(device: torch.device, world_size: int) -> Capture | None:
    """Return how steps on `device` are captured; None where they are not: on CPUs, and among several ranks."""
    return as_cuda_graph if device.type == "cuda" and world_size == 1 else None


def as_cuda_graph(compute: Callable[[], None]) -> Callable[[], None]:
    """Warm `compute` up, capture it as a CUDA graph and return its replay. Raises RuntimeError."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    return graph.replay


def captured_and_compared(
    steps: StepTaker, num_examples: int, batch_size: int, device: torch.device, capture: Capture
) -> Mapping[int, CapturedStep]:
    """Capture a step for each size of batch in an epoch, and compare ten steps with eager ones from the same state.

    Returns the captured steps by size of batch; none, after one warning, where a capture fails or differs by more than
    TOLERANCE. Leaves the training and the random state as they were.
    """
    batches = _batches(num_examples, batch_size, device)
    try:
        with steps.undone():
            captured = {size: CapturedStep(steps, size, device, capture) for size in {len(each) for each in batches}}
        difference = largest_difference(
            trajectory(steps, batches, lambda indices: steps.compute(indices, len(indices))),
            trajectory(steps, batches, lambda indices: captured[len(indices)](indices)),
        )
    except RuntimeError as error:
        logger.warning("training steps are not captured as CUDA graphs, which makes them slower: %s", error)
        return {}
    if not difference <= TOLERANCE:
        logger.warning(
            "training steps are not captured as CUDA graphs, which makes them slower: ten captured steps differ from "
            "eager ones by %.1g of themselves, and %g is allowed",
            difference,
            TOLERANCE,
        )
        return {}
    return captured


@dataclass(frozen=True)
class Trajectory:
    """The course of some steps. losses: (steps,), summed over each batch; movement: by tensor, end less beginning."""

    losses: Tensor
    movement: dict[str, Tensor]


def trajectory(steps: StepTaker, batches: Sequence[Tensor], take: Callable[[Tensor], None]) -> Trajectory:
    """Take a step on each batch by `take`, and undo them all. batches: (B,) int64 each, indices of examples."""
    with steps.undone():
        before, sums = steps.weights(), [steps.summed_loss()]
        for indices in batches:
            steps.advance()
            take(indices)
            sums.append(steps.summed_loss())
        movement = {name: tensor.double() - before[name].double() for name, tensor in steps.weights().items()}
        return Trajectory(torch.stack(sums).diff(), movement)


def largest_difference(expected: Trajectory, other: Trajectory) -> float:
    """Return the largest relative difference of a loss or of a tensor's movement; NaN where one is NaN.

    Movements are compared by sums of absolute values: Adam turns the sign of a gradient near zero into a full step,
    and a few such elements weigh much in a Euclidean norm.
    """
    of_losses = ((other.losses - expected.losses) / expected.losses).abs()
    of_tensors = [
        (other.movement[name] - movement).abs().sum() / movement.abs().sum()
        for name, movement in expected.movement.items()
        if not other.movement[name].equal(movement)  # neither has moved: 0 / 0
    ]
    return float(torch.stack([*of_losses, *of_tensors]).max())


def _batches(num_examples: int, batch_size: int, device: torch.device) -> list[Tensor]:
    """Return NUM_COMPARED batches of the sizes that an epoch has, the ragged one at RAGGED_AT."""
    whole, ragged = min(batch_size, num_examples), num_examples % batch_size
    sizes = [whole] * NUM_COMPARED
    sizes[RAGGED_AT] = ragged or whole
    indices = torch.arange(sum(sizes), device=device) % num_examples
    return list(indices.split(sizes))
