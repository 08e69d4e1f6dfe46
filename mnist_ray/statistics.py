"""The difference of two configurations, each trained on some seeds, all scored on the same test images.

The model, the formulas and the reasons for them are in docs/statistics.md.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

CONFIDENCE = 0.95  # of every interval
POWER = 0.8  # with which the smallest detectable difference is seen
FEWEST_SEEDS = 3  # of a side; below it the spread over seeds is not known well enough to judge configurations
NUM_FLIPS = 10_000  # of the signs of all images, where these are too many to try each
_FLIPS_AT_ONCE = 500

Method = Literal["seeds and images", "sign flips over images"]
Outcome = Literal["better", "worse", "equivalent", "undecided"]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An interval from `low` to `high`, with CONFIDENCE."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def is_within(self, bound: float) -> bool:
        """Report whether all of the interval lies between -bound and bound."""
        return -bound <= self.low and self.high <= bound


@dataclass(frozen=True)
class Difference:
    """A first configuration's mean less a second's: the size, the interval, and the method that gave it."""

    method: Method
    num_seeds: tuple[int, int]  # of the first and of the second
    num_images: int
    value: float
    interval: Interval
    smallest_detectable: float  # the true difference that seeds and images like these show with POWER
    p_value: float | None = None  # of the sign flips alone


def difference(first: Values, second: Values, step: float = 0.0) -> Difference:
    """Compare two configurations, or their networks alone where a side has fewer than FEWEST_SEEDS.

    first, second: (number of seeds, number of images) one value for each network and image; the images are the same.
    step: 1 for values that are only 0 or 1.
    """
    if min(len(first), len(second)) < FEWEST_SEEDS:
        return between_networks(first, second, step)
    return between_configurations(first, second, step)


def between_configurations(first: Values, second: Values, step: float = 0.0) -> Difference:
    """Estimate the difference for new seeds and new images, from two or more seeds a side.

    Variances are those of Searle, Casella and McCulloch 1992, "Variance components".
    """
    num_images = first.shape[1]
    per_image = first.mean(axis=0) - second.mean(axis=0)
    seeds = [_Seeds.of(values) for values in (first, second)]
    of_seeds = sum(side.variance for side in seeds)
    of_images = _of_images(per_image, step)
    # The residuals are in both parts, so they are taken off once.
    variance = max(of_seeds + of_images - sum(side.residual for side in seeds), of_seeds, of_images)
    uncertainty = sum(side.variance**2 / side.degrees for side in seeds)
    degrees_of_seeds = of_seeds**2 / uncertainty if uncertainty else math.inf  # Welch 1938
    degrees = _degrees(of_seeds, degrees_of_seeds, variance, num_images)
    return _estimated("seeds and images", first, second, math.sqrt(variance), degrees)


def between_networks(first: Values, second: Values, step: float = 0.0) -> Difference:
    """Judge these networks alone: the values of an image are averaged over seeds, and images are the sample.

    The p-value is that of the permutation test that exchanges the sides of each image (Fisher 1935, "The design of
    experiments", section 21), of all exchanges or of NUM_FLIPS random ones; the interval is Student's over images.
    """
    per_image = first.mean(axis=0) - second.mean(axis=0)
    error = math.sqrt(_of_images(per_image, step))
    degrees = len(per_image) - 1
    return _estimated("sign flips over images", first, second, error, degrees, sign_flip_p_value(per_image))


def _of_images(per_image: Values, step: float) -> float:
    """Return the variance of the mean over images, with half an image more in which each side is right alone.

    So images that all networks see alike do not count as certainty (Agresti and Min 2005, for matched proportions).
    """
    num_images = len(per_image)
    return float(per_image.var(ddof=1)) / num_images + (step / num_images) ** 2


def sign_flip_p_value(differences: Values) -> float:
    """Return the share of sign changes that give a sum as far from 0 as the one found. differences: (N,)."""
    values = differences[differences != 0]
    found = abs(float(values.sum())) * (1 - 1e-9)  # equal sums may differ by rounding
    if 2 ** len(values) <= NUM_FLIPS:
        signs = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float(np.mean(np.abs((2 * signs - 1) @ values) >= found))
    random = np.random.default_rng(0)
    as_far = 0
    for _ in range(NUM_FLIPS // _FLIPS_AT_ONCE):
        bits = random.integers(0, 256, (_FLIPS_AT_ONCE, -(-len(values) // 8)), dtype=np.uint8)
        is_kept = np.unpackbits(bits, axis=1)[:, : len(values)]
        as_far += int((np.abs(2 * (is_kept @ values) - values.sum()) >= found).sum())
    return (1 + as_far) / (1 + NUM_FLIPS)  # the order found is one of all: Phipson and Smyth 2010


def outcome(found: Difference, bound: float, lower_is_better: bool) -> Outcome:
    """Judge the first configuration against the second.

    A direction that is certain comes before equivalence: a small gain is still a gain, and its size is stated.
    bound: the largest difference that does not matter.
    """
    of_networks = found.p_value is not None
    is_certain = found.p_value < 1 - CONFIDENCE if found.p_value is not None else not found.interval.holds(0.0)
    if is_certain and found.value:
        return "better" if (found.value < 0) == lower_is_better else "worse"
    return "equivalent" if found.interval.is_within(bound) and not of_networks else "undecided"


@dataclass(frozen=True)
class Spread:
    """Standard deviations of one quantity, as a plan assumes them."""

    seeds: float  # of a network's mean over all images, by its seed
    images: float  # of the seeds' mean difference on one image, by the image


def expected_half_width(spread: Spread, num_seeds: int, num_images: int, step: float = 0.0) -> float:
    """Return half of the interval to expect of two configurations, each on `num_seeds` seeds; at least two.

    step: 1 for values that are only 0 or 1.
    """
    of_seeds = 2 * spread.seeds**2 / num_seeds
    of_images = spread.images**2 / num_images + (step / num_images) ** 2
    variance = of_seeds + of_images
    degrees = _degrees(of_seeds, 2 * (num_seeds - 1), variance, num_images)
    return _quantile(degrees, (1 + CONFIDENCE) / 2) * math.sqrt(variance)


@dataclass(frozen=True)
class _Seeds:
    """The share of one configuration's seeds in the variance of the difference."""

    variance: float  # of the mean over seeds, that of the residuals included
    residual: float  # the residuals' part of it
    degrees: int

    @classmethod
    def of(cls, values: Values) -> "_Seeds":
        """Compute the mean squares of a two-way layout. values: (number of seeds, number of images)."""
        num_seeds, num_images = values.shape
        means = values.mean(axis=1, keepdims=True)
        residuals = values - means - values.mean(axis=0) + values.mean()
        residual = float((residuals**2).sum()) / ((num_seeds - 1) * (num_images - 1))
        return cls(float(means.var(ddof=1)) / num_seeds, residual / (num_seeds * num_images), num_seeds - 1)


def _degrees(of_seeds: float, degrees_of_seeds: float, variance: float, num_images: int) -> float:
    """Return degrees of freedom: reciprocal ones are averaged by the parts' shares of the variance.

    Satterthwaite's (1946) rule takes squared shares, and falls to 92 % where one side has all the spread of seeds.
    """
    if variance == 0:
        return num_images - 1
    share = of_seeds / variance
    return 1 / (share / degrees_of_seeds + (1 - share) / (num_images - 1))


def _quantile(degrees: float, probability: float) -> float:
    """Return a quantile of Student's t."""
    return float(stdtrit(min(degrees, 1e9), probability))


def _estimated(
    method: Method, first: Values, second: Values, error: float, degrees: float, p_value: float | None = None
) -> Difference:
    value = float(first.mean() - second.mean())
    half_width = _quantile(degrees, (1 + CONFIDENCE) / 2) * error
    return Difference(
        method,
        (len(first), len(second)),
        first.shape[1],
        value,
        Interval(value - half_width, value + half_width),
        half_width + _quantile(degrees, POWER) * error,
        p_value,
    )
