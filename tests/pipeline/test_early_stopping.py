"""At a rung a trial stops only if enough trials scored better there, whatever the order of the reports."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.pipeline.early_stopping import SuccessiveHalving, rungs

NUM_EPOCHS = 12


def a_spec(rule: dict[str, Any] | None, top_k: int | None = 1, **search: Any) -> JobSpec:
    final = None if top_k is None else {"top_k": top_k}
    parts = {"num_epochs": NUM_EPOCHS, "early_stopping": rule, **search}
    return parse_spec({"data": {"name": "digits"}, "search": parts, "final": final})


objectives = st.floats(0, 3) | st.sampled_from([0.25, 0.5, 1.0])  # the latter for ties; all reported losses are finite
rules = st.none() | st.fixed_dictionaries({"grace_epochs": st.integers(1, 6), "reduction_factor": st.floats(1.1, 5)})


@given(
    objective=st.sampled_from(["val_loss", "val_accuracy"]),
    rule=rules,
    top_k=st.none() | st.integers(1, 4),
    values=st.lists(st.lists(objectives, min_size=NUM_EPOCHS, max_size=NUM_EPOCHS), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_enough_must_be_better(
    objective: str, rule: dict[str, Any] | None, top_k: int | None, values: list[list[float]], order: Any
) -> None:
    """And at least as many as the final round takes come to the end."""
    spec = a_spec(rule, top_k, objective=objective)
    halving, num_kept = SuccessiveHalving(spec, 1000), top_k or 1
    seen: dict[int, list[float]] = {epoch: [] for epoch in rungs(spec, 1000)}
    epochs_done = dict.fromkeys(map(str, range(len(values))), 0)
    num_complete = 0
    while epochs_done:
        training_id = order.choice(list(epochs_done))
        epochs_done[training_id] += 1
        epoch = epochs_done[training_id]
        score = values[int(training_id)][epoch - 1]
        expected = True
        if epoch in seen:
            seen[epoch].append(score)
            better = sum(other < score if objective == "val_loss" else other > score for other in seen[epoch])
            factor = rule["reduction_factor"] if rule else 1
            expected = better < max(num_kept, math.ceil(len(seen[epoch]) / factor))
        assert halving.is_worth_going_on(training_id, epoch, score) == expected
        num_complete += epoch == NUM_EPOCHS
        if not expected or epoch == NUM_EPOCHS:
            del epochs_done[training_id]
    assert num_complete >= min(num_kept, len(values))


@pytest.mark.parametrize("objective", [0.1, 9.0])
def test_repeated_report_changes_nothing(objective: float) -> None:
    halving = SuccessiveHalving(a_spec({"grace_epochs": 1, "reduction_factor": 2}), 1000)
    halving.is_worth_going_on("first", 1, 0.5)
    first_answer = halving.is_worth_going_on("second", 1, objective)
    assert first_answer == (objective < 0.5)
    for number in range(5):
        halving.is_worth_going_on(f"better {number}", 1, 0.01)
        assert halving.is_worth_going_on("second", 1, objective) == first_answer


def test_exempt_trials_count_and_stay() -> None:
    halving = SuccessiveHalving(a_spec({"grace_epochs": 1, "reduction_factor": 2}), 1000)
    halving.is_worth_going_on("first", 1, 0.1)
    assert halving.is_worth_going_on("fixed", 1, 9.0, is_exempt=True)
    assert not halving.is_worth_going_on("worse than both", 1, 9.5)
    assert halving.is_worth_going_on("second of four", 1, 0.2)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, []),
        ({"grace_epochs": 1, "reduction_factor": 3.0}, [1, 3, 9]),
        ({"grace_epochs": 2, "reduction_factor": 1.5}, [2, 3, 5, 7, 11]),
        ({"grace_epochs": 1, "reduction_factor": 3.0, "grace_steps": 3}, [2, 6]),  # two steps an epoch
        ({"grace_epochs": 4, "reduction_factor": 3.0, "grace_steps": 3}, [4]),
        ({"grace_epochs": 1, "grace_steps": 1000}, []),
        ({"grace_epochs": NUM_EPOCHS}, []),
    ],
)
def test_rungs_wait_for_steps(rule: dict[str, Any] | None, expected: list[int]) -> None:
    """Of the largest batch of the space, which takes 1,000 examples in two steps."""
    assert rungs(a_spec(rule), 1000) == expected


def test_recipes_batch_counts_alone() -> None:
    """Where no batch size is searched."""
    space = {"dropout": {"low": 0.0, "high": 0.5}}
    spec = a_spec({"grace_epochs": 1, "grace_steps": 17}, space=space)  # eight steps of 128 an epoch
    assert spec.grace_epochs(1000) == 3
