"""The figures that each program of a comparison returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """One epoch of one training, all of its workers together."""

    elapsed_s: float  # of rank 0; validation included where the training validates
    num_steps: int  # of the optimizer
    num_images: int  # trained on


@dataclass(frozen=True)
class Figures:
    """A program's work: the seconds that the search or the training took once Ray was there, and all epochs."""

    work_s: float
    epochs: list[Epoch]

    @property
    def num_steps(self) -> int:
        return sum(epoch.num_steps for epoch in self.epochs)

    @property
    def num_images(self) -> int:
        return sum(epoch.num_images for epoch in self.epochs)
