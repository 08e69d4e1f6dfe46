"""The interval of one model's accuracy, and the level of all tests of the search."""

from scipy import stats

from mnist_ray.statistics import CONFIDENCE, Interval

SIGNIFICANT = 0.05  # a p-value below it


def wilson(num_correct: int, num_examples: int) -> Interval:
    """Return the score interval of a proportion (Wilson 1927, "Probable Inference", equation 8), by scipy."""
    found = stats.binomtest(num_correct, num_examples).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))
