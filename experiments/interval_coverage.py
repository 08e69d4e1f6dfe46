"""How often the interval of a difference holds the truth: python -m experiments.interval_coverage

Two configurations are made up, each with its own seeds, both on the same images. A part of the spread is left out in
turn. `loss` rows draw normal values; `right` rows draw whether an answer is right, by a chance that depends on image,
configuration and seed.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, stdtrit

from mnist_ray.statistics import Values, between_configurations

UNIT = 0.001


@dataclass(frozen=True)
class Case:
    """Standard deviations in thousandths, each of what it adds to a mean over all images."""

    name: str
    seeds: float  # of one network, by its seed
    images: float  # of the difference of the configurations, by the image
    residual: float  # of one network, by seed and image
    second: float = 1.0  # the factor of `seeds` and `residual` on the second side


CASES = (
    Case("seeds and images alike", 1.0, 0.8, 0.5),
    Case("mostly seeds", 1.0, 0.2, 0.3),
    Case("mostly images", 0.2, 1.0, 0.3),
    Case("mostly residuals", 0.2, 0.2, 1.0),
    Case("no seeds", 0.0, 1.0, 0.5),
    Case("no images", 1.0, 0.0, 0.5),
    Case("one side has all the spread of seeds", 1.0, 0.6, 0.3, second=0.0),
    Case("one side has all the spread, no images", 1.0, 0.0, 0.3, second=0.0),
    Case("seeds alone", 1.0, 0.0, 0.0),
    Case("images alone", 0.0, 1.0, 0.0),
    Case("residuals alone", 0.0, 0.0, 1.0),
)

Draw = Callable[[np.random.Generator, int], tuple[Values, Values, float]]


def draw_normal(case: Case, num_images: int) -> Draw:
    """Return a source of values of both sides, with the true difference."""
    scale = UNIT * np.sqrt(num_images)  # of one image, for a mean's spread of UNIT

    def draw(random: np.random.Generator, num_seeds: int) -> tuple[Values, Values, float]:
        images = random.normal(0, 3 * scale, num_images)  # easy and hard ones, for both sides
        differences = case.images * scale * random.standard_normal(num_images)
        sides = [
            images
            + share * differences
            + factor * case.seeds * UNIT * random.standard_normal((num_seeds, 1))
            + factor * case.residual * scale * random.standard_normal((num_seeds, num_images))
            for share, factor in ((1.0, 1.0), (0.0, case.second))
        ]
        return sides[0], sides[1], 0.0

    return draw


def draw_right(accuracies: tuple[float, float], num_images: int, spread_of_seeds: float) -> Draw:
    """Return a source of right (1) and wrong (0) answers: a few images are hard, mostly the same ones for both sides.

    An answer is right by a chance whose logit is normal over images, over a configuration's images, and over seeds.
    """
    ease = (4.0, 1.0, spread_of_seeds)
    means = [
        brentq(lambda mean, wanted=wanted: _mean_of_expit(mean, float(np.hypot.reduce(ease))) - wanted, 0, 60)
        for wanted in accuracies
    ]

    def draw(random: np.random.Generator, num_seeds: int) -> tuple[Values, Values, float]:
        images = ease[0] * random.standard_normal(num_images)
        sides = []
        for mean in means:
            its = mean + images + ease[1] * random.standard_normal(num_images)
            chances = expit(its + ease[2] * random.standard_normal((num_seeds, 1)))
            sides.append((random.random(chances.shape) < chances).astype(np.float64))
        return sides[0], sides[1], accuracies[0] - accuracies[1]

    return draw


def _mean_of_expit(mean: float, spread: float) -> float:
    """Return the mean chance of a normal logit, on a fine grid."""
    grid = np.linspace(-9, 9, 4001)
    weights = np.exp(-(grid**2) / 2)
    return float((expit(mean + spread * grid) * weights).sum() / weights.sum())


def coverage(draw: Draw, num_seeds: int, num_simulations: int, step: float = 0.0, seed: int = 0) -> float:
    """Return the share of simulations whose interval holds the true difference. step: 1 for right and wrong answers."""
    random = np.random.default_rng(seed)
    covered = 0
    for _ in range(num_simulations):
        first, second, truth = draw(random, num_seeds)
        covered += between_configurations(first, second, step).interval.holds(truth)
    return covered / num_simulations


def compare_rules(num_draws: int = 400_000) -> None:
    """Print the least coverage and the mean half-width of two rules for the degrees of freedom, by the formulas alone.

    Seeds of the first side have a variance of 1 in its mean, the images' part is known, there are no residuals.
    """
    random = np.random.default_rng(0)
    print("| seeds a side | spread of the second side's seeds | plain shares | squared shares | wider by |")
    print("|---|---|---|---|---|")
    for num_seeds, second in itertools.product((3, 5), (0.0, 1.0)):
        coverages, widths = [], []
        for images in np.array((0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 3.0)) * (1 + second):
            first_part, second_part = random.chisquare(num_seeds - 1, (2, num_draws)) / (num_seeds - 1)
            second_part *= second
            of_seeds = first_part + second_part
            welch = of_seeds**2 * (num_seeds - 1) / (first_part**2 + second_part**2)
            error = np.abs(random.standard_normal(num_draws)) * np.sqrt(1 + second + images)
            shares = of_seeds / (of_seeds + images)
            halves = [stdtrit(welch / share, 0.975) * np.sqrt(of_seeds + images) for share in (shares, shares**2)]
            coverages.append([100 * float((error < half).mean()) for half in halves])
            widths.append(100 * float(halves[0].mean() / halves[1].mean() - 1))
        plain, squared = np.min(coverages, axis=0)
        print(f"| {num_seeds} | {second:g} | {plain:.1f} % | {squared:.1f} % | at most {max(widths):.0f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rules", action="store_true", help="compare rules for the degrees of freedom instead")
    arguments = parser.parse_args()
    if arguments.rules:
        return compare_rules()
    rows = {f"loss: {case.name}": (draw_normal(case, arguments.images), 0.0) for case in CASES}
    for accuracies, num_images in (((0.98, 0.98), 360), ((0.997, 0.994), 360), ((0.993, 0.991), 2000)):
        for spread in (0.0, 0.3):
            sides = " and ".join(f"{100 * each:g} %" for each in accuracies)
            draw = draw_right(accuracies, num_images, spread)
            rows[f"right: {sides} of {num_images:,}, seeds' spread {spread:g}"] = (draw, 1.0)
    seeds = (3, 5, 10)
    print(f"| case | {' | '.join(f'{each} seeds' for each in seeds)} |")
    print("|---" * (1 + len(seeds)) + "|")
    for name, (draw, step) in rows.items():
        shares = [100 * coverage(draw, num_seeds, arguments.simulations, step) for num_seeds in seeds]
        print(f"| {name} | {' | '.join(f'{share:.1f} %' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
