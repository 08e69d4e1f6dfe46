"""A search against random search: what it reached after each trial, and whether its suggestions were better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mnist_ray.config import JobSpec, Search
from mnist_ray.record.state import Training
from mnist_ray.record.study import num_startup_trials
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.scores import cost, score_at, scores_at
from mnist_ray.report.analysis.significance import SIGNIFICANT
from mnist_ray.report.formatting import epochs

FEWEST_TO_COMPARE = 4  # trials on either side of the rank test


@dataclass(frozen=True)
class Expectation:
    """The cost that random search would have reached after 1, 2, ... trials; lower is better."""

    num_random: int  # the trials that the estimate rests on
    mean: list[float]
    low: list[float]  # the 5 % quantile
    high: list[float]  # the 95 % quantile


def best_so_far(search: Search, trials: Sequence[Training], epoch: int) -> list[tuple[int, float]]:
    """Return (number of trials, lowest cost at an epoch until then), from the first trial on that reached it.

    All trials are asked at the same epoch: a score of a later one is better for no merit of the trial.
    """
    best, reached = math.inf, []
    for trial in trials:
        score = score_at(search, trial, epoch)
        if score is not None:
            best = min(best, cost(search, score))
        if math.isfinite(best):
            reached.append((_number(trial) + 1, best))
    return reached


def random_expectation(spec: JobSpec, trials: Sequence[Training], epoch: int) -> Expectation | None:
    """Estimate from a search's random trials what random search would have reached; None from fewer than two.

    epoch: at which all trials are compared.
    """
    scores = scores_at(spec.search, _random_trials(spec, trials), epoch)
    return expected_best([cost(spec.search, score) for score in scores], len(trials)) if len(scores) >= 2 else None


def expected_best(costs: Sequence[float], num_trials: int) -> Expectation:
    """Return the expected lowest of k random trials for k = 1 ... num_trials, with its 5 % and 95 % quantiles.

    costs: of random trials. The plug-in estimator of Dodge et al. 2019, "Show Your Work", equations 4 to 7. The
    estimator cannot know of trials better than those in `costs`, so beyond their number it is too pessimistic.
    """
    ordered = np.sort(np.asarray(costs, dtype=np.float64))
    budgets = np.arange(1, num_trials + 1)[:, None]
    above = np.arange(len(ordered), -1, -1) / len(ordered)  # P(cost >= ordered[i]), then 0
    survival = above[None, :] ** budgets  # P(the lowest of k >= ordered[i])
    weights = survival[:, :-1] - survival[:, 1:]
    cumulative = np.cumsum(weights, axis=1)
    low, high = (
        ordered[(cumulative < at - 1e-12).sum(axis=1).clip(max=len(ordered) - 1)].tolist() for at in (0.05, 0.95)
    )
    return Expectation(len(ordered), (weights @ ordered).tolist(), low, high)


def compare_with_random(spec: JobSpec, trials: Sequence[Training], epoch: int) -> Finding:
    """Test whether suggested trials scored better than random ones at an epoch that all trials reach.

    By the rank test of Mann and Whitney (1947), one-sided.
    """
    search = spec.search
    suggested = [trial for trial in trials if _number(trial) >= num_startup_trials(search)]
    sides = [
        [cost(search, score) for score in scores_at(search, side, epoch)]
        for side in (suggested, _random_trials(spec, trials))
    ]
    num_suggested, num_random = map(len, sides)
    if min(num_suggested, num_random) < FEWEST_TO_COMPARE:
        return Finding(
            f"Too few trials to say whether the suggestions were better than random ones ({num_suggested} suggested, "
            f"{num_random} random).",
            is_key=True,
        )
    p_value = float(stats.mannwhitneyu(sides[0], sides[1], alternative="less").pvalue)
    relation = "were better than" if p_value < SIGNIFICANT else "cannot be told from"
    return Finding(
        f"After {epochs(epoch)} the {num_suggested} suggested trials {relation} the {num_random} random ones that the "
        f"search began with (Mann-Whitney p = {p_value:.2g}).",
        is_key=True,
    )


def _random_trials(spec: JobSpec, trials: Sequence[Training]) -> list[Training]:
    """Return the trials that were drawn at random, the fixed ones apart, and that have an epoch."""
    first = len(spec.fixed_trials)
    return [trial for trial in trials if first <= _number(trial) < num_startup_trials(spec.search) and trial.history]


def _number(trial: Training) -> int:
    assert trial.number is not None, trial.id
    return trial.number
