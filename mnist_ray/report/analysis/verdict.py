"""The verdict on a run: whether the selected configuration is better than the baseline, as far as the evidence goes."""

from dataclasses import dataclass
from typing import Literal

from mnist_ray.record.rundir import RunDir
from mnist_ray.report.analysis.predictions import predictions
from mnist_ray.report.analysis.significance import (
    CONFIDENCE,
    FEWEST_SEEDS,
    MOST_SEEDS,
    Difference,
    mcnemar,
    paired_over_seeds,
)
from mnist_ray.report.formatting import points
from mnist_ray.report.models import scored_models

Kind = Literal["better", "worse", "no real difference", "same configuration", "not compared", "not tested yet"]


@dataclass(frozen=True)
class Verdict:
    """A judgement, with the sentence that a user reads."""

    kind: Kind
    sentence: str
    difference: Difference | None = None  # of test accuracy, the selected configuration's less the baseline's


def verdict(run: RunDir) -> Verdict:
    """Judge a run as far as it is. Raises CorruptFileError."""
    state = run.state
    if state.tested is None or state.selected is None:
        return Verdict("not tested yet", "No verdict yet: the test split has not been scored.")
    if state.selected.training is None:
        return Verdict("not compared", "No verdict: nothing was searched, the baseline alone was trained and tested.")
    if any(plan.role == "selected = baseline" for plan in state.selected.retrainings):
        return Verdict(
            "same configuration", "No difference: the search found nothing that validation prefers to the baseline."
        )
    selected, baseline = (
        {model.seed: model for model in scored_models(state, side)} for side in ("selected", "baseline")
    )
    seeds = [seed for seed in selected if seed in baseline]
    if not seeds:
        missing = (
            "the baseline was not retrained beside the selected configuration"
            if selected
            else "no retraining of the selected configuration ended"
        )
        return Verdict("not compared", f"No verdict: {missing}, so nothing says whether tuning helped.")
    if len(seeds) >= FEWEST_SEEDS:
        accuracies = ([side[seed].score.accuracy for seed in seeds] for side in (selected, baseline))
        return _judge_configurations(paired_over_seeds(*accuracies))
    return _judge_networks(run, [(selected[seed].id, baseline[seed].id) for seed in seeds])


def _judge_configurations(difference: Difference) -> Verdict:
    """Judge the two configurations by several seeds."""
    evidence = (
        f"{points(difference.value)} of test accuracy, 95 % interval "
        f"{points(difference.interval.low)} to {points(difference.interval.high)}, {difference.method}, "
        f"{difference.num_seeds} seeds"
    )
    if not difference.is_real:
        return Verdict(
            "no real difference",
            f"No real difference between the selected configuration and the baseline ({evidence}). "
            f"{_seeds_to_see(difference)}",
            difference,
        )
    kind: Kind = "better" if difference.value > 0 else "worse"
    return Verdict(kind, f"The selected configuration is {kind} than the baseline ({evidence}).", difference)


def _judge_networks(run: RunDir, pairs: list[tuple[str, str]]) -> Verdict:
    """Judge the networks of too few seeds. Two pairs must agree, each at half the error (Bonferroni)."""
    found = []
    for pair in pairs:
        first, second = (predictions(run, training_id) for training_id in pair)
        if first and second:
            found.append(mcnemar(first.is_right, second.is_right))
    if not found:
        return Verdict("not compared", "No verdict: the record does not hold the models' predictions.")
    evidence = "; ".join(
        f"{points(each.value)} of test accuracy, 95 % interval {points(each.interval.low)} to "
        f"{points(each.interval.high)}, exact McNemar p = {each.p_value:.2g}"
        for each in found
    )
    which = "these two networks" if len(found) == 1 else f"the networks of these {len(found)} seeds"
    agree = len({each.value > 0 for each in found}) == 1
    if agree and all(each.p_value < (1 - CONFIDENCE) / len(found) for each in found):
        kind: Kind = "better" if found[0].value > 0 else "worse"
        return Verdict(
            kind,
            f"Of {which} that of the selected configuration is {kind} ({evidence}). Fewer than {FEWEST_SEEDS} seeds "
            "say nothing certain about the configurations.",
            found[0],
        )
    return Verdict(
        "no real difference",
        f"No real difference between {which} ({evidence}); fewer than {FEWEST_SEEDS} seeds say nothing certain about "
        f"the configurations. {_seeds_to_see(found[0])}",
        found[0],
    )


def _seeds_to_see(difference: Difference) -> str:
    """Say how many seeds would show a difference of this size."""
    if difference.value == 0:
        return "There is no difference that more seeds could confirm."
    if difference.seeds_needed is None:
        return f"Not even {MOST_SEEDS:,} seeds would be likely to show a difference this small."
    if difference.method == "exact McNemar":
        return (
            f"Were a difference of this size real, about {difference.seeds_needed} seeds or more would be needed to "
            "see it four times out of five."
        )
    return (
        f"Were a difference of this size real, it would take about {difference.seeds_needed} seeds to see it four "
        "times out of five."
    )
