"""The two roles of a run, selected configuration and baseline: their test scores over seeds, and what divides them."""

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import get_args

import numpy as np
import numpy.typing as npt

from mnist_ray.config import DecidedBy
from mnist_ray.metrics import Score
from mnist_ray.record.judgement import predictions_of
from mnist_ray.record.models import Side, retrained_models
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState


@dataclass(frozen=True)
class RoleScores:
    """One role's models on the test split, one a seed."""

    side: Side
    name: str  # for people, as RetrainedModel.side has it
    seeds: tuple[int, ...]
    scores: tuple[Score, ...]  # in the order of the seeds

    def values(self, quantity: DecidedBy) -> list[float]:
        """Return a quantity of each seed's model."""
        return [score.loss if quantity == "test_loss" else score.accuracy for score in self.scores]

    def mean(self, quantity: DecidedBy) -> float:
        return fmean(self.values(quantity))

    def spread(self, quantity: DecidedBy) -> float | None:
        """Return the standard deviation over seeds; None with one seed."""
        return stdev(self.values(quantity)) if len(self.scores) > 1 else None


def role_scores(state: RunState) -> list[RoleScores]:
    """Return the roles that have a tested model, the selected configuration first."""
    found = []
    for side in get_args(Side):
        tested = [each for each in retrained_models(state) if each.role.startswith(side) and "test" in each.scores]
        if tested:
            seeds = tuple(each.training.config.seed for each in tested)
            found.append(RoleScores(side, tested[0].side, seeds, tuple(each.scores["test"] for each in tested)))
    return found


@dataclass(frozen=True)
class DividedImages:
    """The test images by which role answers them right: on more than half of its seeds."""

    num_seeds: tuple[int, int]  # of the selected configuration, of the baseline
    num_right: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # (N,) by image, on how many of them

    def alone_right(self, side: Side) -> list[int]:
        """Return the images that one role alone answers right, those first whose seeds differ most."""
        first, second = (right * 2 > seeds for right, seeds in zip(self.num_right, self.num_seeds, strict=True))
        mine = first & ~second if side == "selected" else second & ~first
        shares = [right / seeds for right, seeds in zip(self.num_right, self.num_seeds, strict=True)]
        lead = np.abs(shares[0] - shares[1])
        return sorted((int(number) for number in np.flatnonzero(mine)), key=lambda number: (-lead[number], number))


def divided_images(run: RunDir) -> DividedImages | None:
    """Compare the answers of both roles; None where one of them has none on record. Raises CorruptFileError."""
    sides = [predictions_of(run, side) for side in get_args(Side)]
    if not all(sides):
        return None
    selected, baseline = (np.stack([model.is_right for model in side]).sum(axis=0, dtype=np.int64) for side in sides)
    return DividedImages((len(sides[0]), len(sides[1])), (selected, baseline))
