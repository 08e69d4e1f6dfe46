"""Runs side by side: what differs in what went in and in what came out, and whether that is more than noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mnist_ray.config import flat_spec, parse_spec
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.selection import scored_models
from mnist_ray.report.analysis.predictions import predictions
from mnist_ray.report.analysis.significance import (
    FEWEST_SEEDS,
    Difference,
    mcnemar,
    of_proportions,
    paired_over_seeds,
    unpaired_over_seeds,
)
from mnist_ray.report.analysis.verdict import points
from mnist_ray.report.summary import interval_of, percent

# Where a run lies and what it is called are no differences between runs.
NOT_COMPARED = frozenset({"name", "storage", "data.dir"})


@dataclass(frozen=True)
class Comparison:
    """A run against the first one."""

    run: str
    inputs: list[str]  # what differs, a line each
    difference: Difference | None  # of the choices' test accuracy, this run's less the first's; None if not tested
    sentence: str

    @property
    def is_worse(self) -> bool:
        return self.difference is not None and self.difference.is_real and self.difference.value < 0


def compare(runs: Sequence[RunDir]) -> list[Comparison]:
    """Every run but the first, against the first. Raises CorruptFileError."""
    first, *others = runs
    return [_compared(first, other) for other in others]


def comparison_text(runs: Sequence[RunDir], comparisons: Sequence[Comparison]) -> str:
    lines = [_outcome(run) for run in runs]
    for comparison in comparisons:
        lines += ["", f"{comparison.run} against {runs[0].path.name}:"]
        lines += [f"  {line}" for line in comparison.inputs] or ["  the same spec, data, code and versions"]
        lines.append(f"  outcome: {comparison.sentence}")
    return "\n".join(lines)


def _outcome(run: RunDir) -> str:
    models = scored_models(run, "choice")
    if not models:
        return f"{run.path.name}: not tested yet"
    told = "; ".join(
        f"seed {model.seed} {100 * model.scores['test_accuracy']:.2f} % ({percent(interval_of(model.scores))}), "
        f"loss {model.scores['test_loss']:.4f}"
        for model in models
    )
    values = (run.stage("chosen") or {})["hyperparameters"]
    return f"{run.path.name}: choice ({', '.join(f'{name} {value:.4g}' for name, value in values.items())}): {told}"


def _compared(first: RunDir, other: RunDir) -> Comparison:
    difference, note = _difference(first, other)
    if difference is None:
        return Comparison(other.path.name, _inputs(first, other), None, note)
    interval = difference.interval
    evidence = (
        f"{points(difference.value)} of test accuracy (95 % interval {points(interval.low)} to "
        f"{points(interval.high)}, {difference.method}, p = {difference.p_value:.2g})"
    )
    said = ("better" if difference.value > 0 else "worse") if difference.is_real else "no more than noise"
    return Comparison(other.path.name, _inputs(first, other), difference, f"{said}: {evidence}{note}")


def _difference(first: RunDir, other: RunDir) -> tuple[Difference | None, str]:
    sides = [{model.seed: model for model in scored_models(run, "choice")} for run in (other, first)]
    if not all(sides):
        return None, "not compared: not both are tested"
    if _data(first) != _data(other):
        return None, "not compared: they were trained on different data"
    accuracies = [{seed: model.scores["test_accuracy"] for seed, model in side.items()} for side in sides]
    shared = sorted(accuracies[0].keys() & accuracies[1].keys())
    if len(shared) >= FEWEST_SEEDS:
        return paired_over_seeds(*([side[seed] for seed in shared] for side in accuracies)), ""
    if min(map(len, accuracies)) >= FEWEST_SEEDS:
        return unpaired_over_seeds(*(list(side.values()) for side in accuracies)), ""
    note = "; fewer than three seeds: of these networks only"
    own, its = (next(iter(side.values())) for side in sides)
    said, said_first = predictions(other, own.id), predictions(first, its.id)
    if said is not None and said_first is not None and (said.labels == said_first.labels).all():
        return mcnemar(said.is_right, said_first.is_right), note
    rights = [(model.scores["test_correct"], model.scores["test_examples"]) for model in (own, its)]
    return of_proportions(*rights), note


def _data(run: RunDir) -> Any:
    started = run.stage("started") or {}
    return (started.get("data") or {}).get("training_sha256")


def _inputs(first: RunDir, other: RunDir) -> list[str]:
    facts = [_facts(run) for run in (first, other)]
    keys = [key for key in facts[0] | facts[1] if facts[0].get(key) != facts[1].get(key)]
    return [f"{key}: {facts[0].get(key)} -> {facts[1].get(key)}" for key in keys]


def _facts(run: RunDir) -> dict[str, Any]:
    """Everything that went in, by a name for people."""
    started = run.stage("started") or {}
    spec = flat_spec(parse_spec(started["spec"], str(run.path))) if started else {}
    made = started.get("provenance", {})
    return {
        **{key: value for key, value in spec.items() if key not in NOT_COMPARED},
        **{f"data {key}": value for key, value in started.get("data", {}).items()},
        **{f"version of {name}": number for name, number in started.get("versions", {}).items()},
        "source": made.get("source_sha256", "not recorded")[:12],
        "git commit": made.get("git_commit"),
        "processors": "; ".join(started.get("cluster", {}).get("processors", [])) or "not recorded",
    }
