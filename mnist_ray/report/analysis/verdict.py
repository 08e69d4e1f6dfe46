"""Whether the tuned configuration is better than the recipe, in one sentence that its evidence supports."""

from dataclasses import dataclass
from typing import Literal

from mnist_ray.record.rundir import RunDir
from mnist_ray.record.selection import scored_models
from mnist_ray.record.tables import ROLE_OF_CHOICE_AND_RECIPE
from mnist_ray.report.analysis.predictions import predictions
from mnist_ray.report.analysis.significance import (
    CONFIDENCE,
    FEWEST_SEEDS,
    MOST_SEEDS,
    Difference,
    mcnemar,
    paired_over_seeds,
)

Kind = Literal["better", "worse", "no real difference", "same recipe", "not compared", "not tested yet"]


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    sentence: str
    difference: Difference | None = None  # of test accuracy, choice less recipe


def verdict(run: RunDir) -> Verdict:
    """Of a run as far as it is. Raises CorruptFileError."""
    if run.stage("tested") is None:
        return Verdict("not tested yet", "No verdict yet: the test split is still sealed.")
    chosen = run.stage("chosen") or {}
    if chosen.get("training") is None:
        return Verdict(
            "not compared", "No verdict: nothing was searched, the spec's recipe alone was trained and tested."
        )
    if any(plan["role"] == ROLE_OF_CHOICE_AND_RECIPE for plan in chosen["retrainings"]):
        return Verdict("same recipe", "No difference: the search found nothing that validation prefers to the recipe.")
    choice, baseline = ({model.seed: model for model in scored_models(run, role)} for role in ("choice", "baseline"))
    seeds = [seed for seed in choice if seed in baseline]
    if not seeds:
        missing = "the recipe was not retrained beside the choice" if choice else "no retraining of the choice ended"
        return Verdict("not compared", f"No verdict: {missing}, so nothing says whether tuning helped.")
    if len(seeds) >= FEWEST_SEEDS:
        accuracies = ([side[seed].scores["test_accuracy"] for seed in seeds] for side in (choice, baseline))
        return _over_seeds(paired_over_seeds(*accuracies))
    return _of_these_networks(run, [(choice[seed].id, baseline[seed].id) for seed in seeds])


def _over_seeds(difference: Difference) -> Verdict:
    """What several seeds say of the two configurations."""
    evidence = (
        f"{points(difference.value)} of test accuracy, 95 % interval "
        f"{points(difference.interval.low)} to {points(difference.interval.high)}, {difference.method}, "
        f"{difference.num_seeds} seeds"
    )
    if not difference.is_real:
        return Verdict(
            "no real difference",
            f"No real difference between the tuned configuration and the recipe ({evidence}). "
            f"{_what_it_would_take(difference)}",
            difference,
        )
    kind: Kind = "better" if difference.value > 0 else "worse"
    return Verdict(kind, f"The tuned configuration is {kind} than the recipe ({evidence}).", difference)


def _of_these_networks(run: RunDir, pairs: list[tuple[str, str]]) -> Verdict:
    """What too few seeds say: of these networks only. Two pairs must agree, each at half the error (Bonferroni)."""
    found = [difference for pair in pairs if (difference := _mcnemar(run, pair)) is not None]
    if not found:
        return Verdict("not compared", "No verdict: the record does not hold what the models said of each test image.")
    first = found[0]
    told = "; ".join(
        f"{points(each.value)} of test accuracy, 95 % interval {points(each.interval.low)} to "
        f"{points(each.interval.high)}, exact McNemar p = {each.p_value:.2g}"
        for each in found
    )
    which = "these two networks" if len(found) == 1 else f"the networks of these {len(found)} seeds"
    agree = len({each.value > 0 for each in found}) == 1
    if agree and all(each.p_value < (1 - CONFIDENCE) / len(found) for each in found):
        kind: Kind = "better" if first.value > 0 else "worse"
        return Verdict(
            kind,
            f"Of {which} the tuned one is {kind} ({told}). Fewer than {FEWEST_SEEDS} seeds say nothing certain about "
            "the configurations.",
            first,
        )
    return Verdict(
        "no real difference",
        f"No real difference between {which} ({told}); fewer than {FEWEST_SEEDS} seeds say nothing certain about the "
        f"configurations. {_what_it_would_take(first)}",
        first,
    )


def _mcnemar(run: RunDir, pair: tuple[str, str]) -> Difference | None:
    first, second = (predictions(run, training_id) for training_id in pair)
    return mcnemar(first.is_right, second.is_right) if first and second else None


def _what_it_would_take(difference: Difference) -> str:
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


def points(difference: float) -> str:
    """A difference of accuracies as people read it: 0.0012 -> "+0.12 points"."""
    return f"{100 * difference:+.2f} points".replace("-", "−")
