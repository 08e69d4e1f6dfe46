"""Early stopping of trials by asynchronous successive halving."""

import math

from mnist_ray.config import JobSpec
from mnist_ray.record.study import direction


class SuccessiveHalving:
    """Asynchronous successive halving (after Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    The rungs are the grace, the grace * reduction_factor, and so on, in epochs, below the full budget. At a rung a
    trial stops if enough of the trials that reached the rung so far have a better objective there: one in
    `reduction_factor` of them, and at least as many as the final round takes (docs/decisions/0018-early-stopping.md).
    """

    def __init__(self, spec: JobSpec, num_train: int) -> None:
        """num_train: the examples that a trial trains on."""
        self._is_maximized = direction(spec.search) == "maximize"
        self._num_kept = spec.final.top_k if spec.final else 1
        self._factor = spec.search.early_stopping.reduction_factor if spec.search.early_stopping else math.inf
        # By epoch. Each rung holds the cost of every trial that reached it, lower is better.
        self._rungs: dict[int, dict[str, float]] = {epoch: {} for epoch in rungs(spec, num_train)}
        self._stopped: set[tuple[int, str]] = set()

    def is_worth_going_on(self, training_id: str, epoch: int, objective: float, is_exempt: bool = False) -> bool:
        """Take note of a trial's objective at an epoch and return whether the trial goes on.

        A report that comes again is answered as before. is_exempt: the trial counts at the rung, and goes on.
        """
        rung = self._rungs.get(epoch)
        if rung is None:
            return True
        if training_id not in rung:
            cost = -objective if self._is_maximized else objective
            rung[training_id] = cost
            num_better = sum(other < cost for other in rung.values())
            if not is_exempt and num_better >= max(self._num_kept, math.ceil(len(rung) / self._factor)):
                self._stopped.add((epoch, training_id))
        return (epoch, training_id) not in self._stopped


def rungs(spec: JobSpec, num_train: int) -> list[int]:
    """Return the epochs after which a trial can be stopped; none without early stopping, or in too short a search."""
    grace, rule = spec.grace_epochs(num_train), spec.search.early_stopping
    if rule is None or grace is None:
        return []
    found: list[int] = []
    milestone = float(grace)
    while (epoch := math.ceil(milestone)) < spec.search.num_epochs:
        found.append(epoch)
        milestone *= rule.reduction_factor
    return sorted(set(found))
