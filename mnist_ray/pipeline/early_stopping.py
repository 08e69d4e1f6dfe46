"""Early stopping of trials by asynchronous successive halving."""

import numpy as np

from mnist_ray.config import EarlyStopping, Search
from mnist_ray.record.study import direction


class SuccessiveHalving:
    """Asynchronous successive halving (ASHA; Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    The rungs are grace_epochs, grace_epochs * reduction_factor, and so on, below the full budget. A trial stops at a
    rung if its objective is worse than the best 1 / reduction_factor of those that reached the rung before. The
    decisions are those of Ray Tune's ASHAScheduler with one bracket and stop_last_trials=False.
    """

    def __init__(self, search: Search) -> None:
        # Without early stopping the only rung is at the end, where a trial is complete whatever the rung holds.
        rule = search.early_stopping or EarlyStopping(grace_epochs=search.num_epochs)
        self._search = search
        self._factor = rule.reduction_factor
        num_rungs = int(np.log(search.num_epochs / rule.grace_epochs) / np.log(self._factor) + 1)
        # Highest first. Each rung holds the objective of every trial that reached it, larger is better.
        self._rungs: list[tuple[float, dict[str, float]]] = [
            (rule.grace_epochs * self._factor**k, {}) for k in reversed(range(num_rungs))
        ]

    def is_worth_going_on(self, training_id: str, epoch: int, objective: float) -> bool:
        """Record a trial's objective at an epoch and return whether the trial goes on."""
        reward = objective if direction(self._search) == "maximize" else -objective
        for milestone, rung in self._rungs:
            if epoch < milestone:
                continue
            if training_id in rung:
                return True  # decided when the trial reached this rung
            percentile = (1 - 1 / self._factor) * 100
            goes_on = not rung or bool(reward >= np.nanpercentile(list(rung.values()), percentile))
            rung[training_id] = reward
            return goes_on
        return True
