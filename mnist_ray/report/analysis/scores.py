"""The scores of trials, made comparable: at the same epoch, and with lower as better."""

from collections.abc import Iterable

from mnist_ray.config import Search
from mnist_ray.record.state import RunState, Training
from mnist_ray.record.study import direction


def rung_epoch(state: RunState) -> int:
    """Return the epoch that every trial of a started run reaches unless it fails: the first one with a decision."""
    assert state.started is not None
    spec = state.started.spec
    grace = spec.grace_epochs(state.started.data.num_training - state.started.num_validation)
    return min(grace or spec.search.num_epochs, spec.search.num_epochs)


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
