"""Runs side by side: the differences of inputs and outcomes, and whether an outcome differs by more than noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mnist_ray.config import flat_spec
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState
from mnist_ray.report.analysis.predictions import predictions
from mnist_ray.report.analysis.significance import (
    FEWEST_SEEDS,
    Difference,
    mcnemar,
    of_proportions,
    paired_over_seeds,
    unpaired_over_seeds,
    wilson,
)
from mnist_ray.report.formatting import hyperparameters_in_words, interval_in_percent, percent, points
from mnist_ray.report.models import scored_models

# The name and the folders of a run are no differences between runs.
NOT_COMPARED = frozenset({"name", "storage", "data.dir"})


@dataclass(frozen=True)
class Comparison:
    """A run against the first one."""

    run: str
    inputs: list[str]  # what differs, a line each
    difference: Difference | None  # of test accuracy, this run's less the first's; None if they are not compared
    sentence: str

    @property
    def is_worse(self) -> bool:
        return self.difference is not None and self.difference.is_real and self.difference.value < 0


def compare(runs: Sequence[RunDir]) -> list[Comparison]:
    """Compare every run but the first with the first, by their selected configurations. Raises CorruptFileError."""
    first, *others = runs
    return [_compared(first, other) for other in others]


def comparison_text(runs: Sequence[RunDir], comparisons: Sequence[Comparison]) -> str:
    """Return the outcome of each run in a line, then each comparison."""
    lines = [_outcome(run) for run in runs]
    for comparison in comparisons:
        lines += ["", f"{comparison.run} against {runs[0].path.name}:"]
        lines += [f"  {line}" for line in comparison.inputs] or ["  the same spec, data, code and versions"]
        lines.append(f"  outcome: {comparison.sentence}")
    return "\n".join(lines)


def _outcome(run: RunDir) -> str:
    selected, models = run.state.selected, scored_models(run.state, "selected")
    if selected is None or not models:
        return f"{run.path.name}: not tested yet"
    results = []
    for model in models:
        interval = wilson(model.score.num_correct, model.score.num_examples)
        accuracy = f"{percent(model.score.accuracy)} ({interval_in_percent(interval)})"
        results.append(f"seed {model.seed} {accuracy}, loss {model.score.loss:.4f}")
    values = hyperparameters_in_words(selected.hyperparameters)
    return f"{run.path.name}: selected configuration ({values}): {'; '.join(results)}"


def _compared(first: RunDir, other: RunDir) -> Comparison:
    difference, note = _difference(first, other)
    before, after = _inputs(first.state), _inputs(other.state)
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    inputs = [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]
    if difference is None:
        return Comparison(other.path.name, inputs, None, note)
    interval = difference.interval
    evidence = (
        f"{points(difference.value)} of test accuracy (95 % interval {points(interval.low)} to "
        f"{points(interval.high)}, {difference.method}, p = {difference.p_value:.2g})"
    )
    result = ("better" if difference.value > 0 else "worse") if difference.is_real else "no more than noise"
    return Comparison(other.path.name, inputs, difference, f"{result}: {evidence}{note}")


def _difference(first: RunDir, other: RunDir) -> tuple[Difference | None, str]:
    """Return the difference with a note on how far it reaches, or None with the reason."""
    sides = [{model.seed: model for model in scored_models(run.state, "selected")} for run in (other, first)]
    if not all(sides):
        return None, "not compared: not both are tested"
    if _training_data(first.state) != _training_data(other.state):
        return None, "not compared: they were trained on different data"
    accuracies = [{seed: model.score.accuracy for seed, model in side.items()} for side in sides]
    shared = sorted(accuracies[0].keys() & accuracies[1].keys())
    if len(shared) >= FEWEST_SEEDS:
        return paired_over_seeds(*([side[seed] for seed in shared] for side in accuracies)), ""
    if min(map(len, accuracies)) >= FEWEST_SEEDS:
        return unpaired_over_seeds(*(list(side.values()) for side in accuracies)), ""
    note = "; fewer than three seeds: of these networks only"
    model, reference = (next(iter(side.values())) for side in sides)
    predicted, expected = predictions(other, model.id), predictions(first, reference.id)
    if predicted is not None and expected is not None and (predicted.labels == expected.labels).all():
        return mcnemar(predicted.is_right, expected.is_right), note
    return of_proportions(*((each.score.num_correct, each.score.num_examples) for each in (model, reference))), note


def _training_data(state: RunState) -> str | None:
    return state.started.data.training_sha256 if state.started else None


def _inputs(state: RunState) -> dict[str, object]:
    """Return everything that went into a run, by a name for people."""
    started = state.started
    if started is None:
        return {}
    return {
        **{key: value for key, value in flat_spec(started.spec).items() if key not in NOT_COMPARED},
        **{f"data {key}": value for key, value in asdict(started.data).items()},
        **{f"version of {name}": number for name, number in started.versions.items()},
        "source": started.provenance.source_sha256[:12],
        "git commit": started.provenance.git_commit,
        "backend": started.cluster.backend,
        "processors": "; ".join(started.cluster.processors) or "not recorded",
    }
