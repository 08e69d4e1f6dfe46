"""The scores of trials, made comparable: at the same epoch, and with lower as better."""

from collections.abc import Iterable

from mnist_ray.config import Search
from mnist_ray.record.state import Training
from mnist_ray.record.study import direction


def rung_epoch(search: Search) -> int:
    """Return the epoch that every trial reaches unless it fails: the first at which a trial can be stopped."""
    return search.early_stopping.grace_epochs if search.early_stopping else search.num_epochs


def cost(search: Search, score: float) -> float:
    """Return a score for which lower is better, whatever the objective."""
    return -score if direction(search) == "maximize" else score


def score_at(search: Search, training: Training, epoch: int) -> float | None:
    """Return the objective after an epoch; None where the training did not get there."""
    reached = (metrics for metrics in training.history if metrics.epoch == epoch)
    return next((metrics.objective(search.objective) for metrics in reached), None)


def scores_at(search: Search, trainings: Iterable[Training], epoch: int) -> list[float]:
    """Return the objectives after an epoch of the trainings that got there."""
    return [score for training in trainings if (score := score_at(search, training, epoch)) is not None]
