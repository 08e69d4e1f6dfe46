"""The protection that the final round gives: python -m experiments.final_round

Made-up finalists: each is truly worse than the recipe by 0.002 on average, give or take 0.004 (a normal distribution
of differences in loss). A score has noise of its seed (0.0015), and each configuration has noise of the validation
images (0.0015), which all its seeds share. Counted are the runs that ship something truly worse than the recipe:

- without the recipe among the finalists, the best mean is shipped;
- with it, the best mean of all is shipped;
- with the margin, the best finalist is shipped if it beats the recipe by more than one standard error of the
  difference of two means, s * sqrt(2 / seeds). s is known with both noises in it; or known with the seeds' alone; or
  pooled over the finalists and the recipe, which shows the seeds' noise alone.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnist_ray.record.selection import pooled_deviation

NUM_FINALISTS = 3
WORSE, SPREAD = 0.002, 0.004  # of the finalists' true losses, less the recipe's
SEED_NOISE, IMAGE_NOISE = 0.0015, 0.0015
RECIPE = NUM_FINALISTS  # its index


@dataclass(frozen=True)
class PlantedRound:
    """One made-up final round; the recipe comes last, and its true loss is 0."""

    truth: npt.NDArray[np.float64]  # (configurations,)
    scores: npt.NDArray[np.float64]  # (configurations, seeds)

    @property
    def means(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.scores.mean(axis=1))

    def by_margin(self, deviation: float) -> int:
        """Return the index of what is shipped."""
        best = int(self.means[:RECIPE].argmin())
        margin = deviation * math.sqrt(2 / self.scores.shape[1])
        return best if self.means[RECIPE] - self.means[best] > margin else RECIPE

    @property
    def by_estimated_margin(self) -> int:
        return self.by_margin(pooled_deviation(self.scores.tolist()) or 0.0)


@dataclass(frozen=True)
class Shares:
    """The share of runs that ship something worse than the recipe, by rule."""

    without_recipe: float
    with_recipe: float
    known_margin: float  # of both noises
    known_seeds_margin: float
    estimated_margin: float


def planted_rounds(random: np.random.Generator, num_runs: int, seeds: int) -> Iterator[PlantedRound]:
    for _ in range(num_runs):
        truth = np.append(random.normal(WORSE, SPREAD, NUM_FINALISTS), 0.0)
        level = truth + random.normal(0.0, IMAGE_NOISE, len(truth))
        yield PlantedRound(truth, level[:, None] + random.normal(0.0, SEED_NOISE, (len(truth), seeds)))


def shipped(num_runs: int, seeds: int) -> npt.NDArray[np.float64]:
    """Return the true losses of what is shipped, a row a run, a column a rule in the order of `Shares`."""
    return np.array(
        [
            each.truth[
                [
                    int(each.means[:RECIPE].argmin()),
                    int(each.means.argmin()),
                    each.by_margin(math.hypot(SEED_NOISE, IMAGE_NOISE)),
                    each.by_margin(SEED_NOISE),
                    each.by_estimated_margin,
                ]
            ]
            for each in planted_rounds(np.random.default_rng(0), num_runs, seeds)
        ]
    )


def shipped_worse(num_runs: int, seeds: int) -> Shares:
    return Shares(*(shipped(num_runs, seeds) > 0).mean(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    arguments = parser.parse_args()
    rules = [
        "without the recipe",
        "with the recipe",
        "margin, both known",
        "margin, seeds' known",
        "margin, s estimated",
    ]
    print(f"{'':<8}{'rule':<22}{'worse':>8}{'better':>8}{'mean loss less the recipe':>28}")
    for seeds in (2, 3, 5):
        losses = shipped(arguments.runs, seeds)
        for rule, column in zip(rules, losses.T, strict=True):
            worse, better = 100 * (column > 0).mean(), 100 * (column < 0).mean()
            print(f"{seeds} seeds {rule:<22}{worse:>6.1f} %{better:>6.1f} %{column.mean():>+28.5f}")


if __name__ == "__main__":
    main()
