"""Early stopping beside Ray Tune's own ASHAScheduler, which made the same decisions in earlier releases."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler

from mnist_ray.config import EarlyStopping, Objective, Search
from mnist_ray.pipeline.early_stopping import SuccessiveHalving

NUM_EPOCHS = 12


def search_of(objective: Objective, rule: EarlyStopping | None) -> Search:
    return Search(objective=objective, num_epochs=NUM_EPOCHS, early_stopping=rule)


class Asha:
    """Ray Tune's scheduler with the settings of a search."""

    def __init__(self, search: Search) -> None:
        rule = search.early_stopping or EarlyStopping(grace_epochs=search.num_epochs)
        self._scheduler = ASHAScheduler(
            time_attr="epoch",
            metric="objective",
            mode="min" if search.objective == "val_loss" else "max",
            max_t=search.num_epochs,
            grace_period=rule.grace_epochs,
            reduction_factor=rule.reduction_factor,
            stop_last_trials=False,
        )
        self._trials: dict[str, Any] = {}

    def is_worth_going_on(self, training_id: str, epoch: int, objective: float) -> bool:
        if training_id not in self._trials:
            self._trials[training_id] = SimpleNamespace(trial_id=training_id)
            self._scheduler.on_trial_add(None, self._trials[training_id])  # type: ignore[arg-type]
        result = {"epoch": epoch, "objective": objective}
        return self._scheduler.on_trial_result(None, self._trials[training_id], result) == "CONTINUE"  # type: ignore[arg-type]


objectives = st.floats(0, 3) | st.sampled_from([0.25, 0.5, 1.0])  # the latter for ties; all reported losses are finite
rules = st.none() | st.builds(EarlyStopping, grace_epochs=st.integers(1, 6), reduction_factor=st.integers(2, 4))


@given(
    objective=st.sampled_from(["val_loss", "val_accuracy"]),
    rule=rules,
    values=st.lists(st.lists(objectives, min_size=NUM_EPOCHS, max_size=NUM_EPOCHS), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_decisions_are_those_of_asha(
    objective: Objective, rule: EarlyStopping | None, values: list[list[float]], order: Any
) -> None:
    search = search_of(objective, rule)
    ours, asha = SuccessiveHalving(search), Asha(search)
    epochs_done = dict.fromkeys(map(str, range(len(values))), 0)
    while epochs_done:
        training_id = order.choice(list(epochs_done))
        epochs_done[training_id] += 1
        epoch = epochs_done[training_id]
        report = training_id, epoch, values[int(training_id)][epoch - 1]
        goes_on = ours.is_worth_going_on(*report)
        assert goes_on == asha.is_worth_going_on(*report)
        if not goes_on or epoch == NUM_EPOCHS:
            del epochs_done[training_id]


@pytest.mark.parametrize("objective", [0.1, 9.0])
def test_repeated_report_changes_nothing(objective: float) -> None:
    halving = SuccessiveHalving(search_of("val_loss", EarlyStopping(grace_epochs=1, reduction_factor=2)))
    halving.is_worth_going_on("first", 1, 0.5)
    first_answer = halving.is_worth_going_on("second", 1, objective)
    halving.is_worth_going_on("second", 1, objective)
    assert first_answer == (objective < 0.5)
    assert halving.is_worth_going_on("third", 1, 0.2)
