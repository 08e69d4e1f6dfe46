"""Runs side by side: the differences of inputs and outcomes, and whether an outcome differs by more than noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mnist_ray.config import flat_spec
from mnist_ray.record.judgement import Judgement, judge, predictions_of
from mnist_ray.record.models import scored_models
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState
from mnist_ray.report.analysis.significance import wilson
from mnist_ray.report.analysis.verdict import in_words
from mnist_ray.report.formatting import hyperparameters_in_words, interval_in_percent, percent

# The name and the folders of a run are no differences between runs.
NOT_COMPARED = frozenset({"name", "storage", "data.dir"})


@dataclass(frozen=True)
class Comparison:
    """A run against the first one."""

    run: str
    inputs: dict[str, tuple[object, object]]  # what differs: the first run's value and this one's, by a name for people
    judgement: Judgement | None  # of this run's selected configuration against the first's; None if not compared
    sentence: str

    @property
    def is_worse(self) -> bool:
        return self.judgement is not None and self.judgement.kind == "worse"


def compare(runs: Sequence[RunDir]) -> list[Comparison]:
    """Compare every run but the first with the first: their selected configurations, by the first one's rule.

    Raises CorruptFileError.
    """
    first, *others = runs
    return [_compared(first, other) for other in others]


def comparison_text(runs: Sequence[RunDir], comparisons: Sequence[Comparison]) -> str:
    """Return the outcome of each run in a line, then each comparison."""
    lines = [_outcome(run) for run in runs]
    for comparison in comparisons:
        lines += ["", f"{comparison.run} against {runs[0].path.name}:"]
        changes = [f"  {name}: {before} -> {after}" for name, (before, after) in comparison.inputs.items()]
        lines += changes or ["  the same spec, data, code and versions"]
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
    before, after = _inputs(first.state), _inputs(other.state)
    names = [name for name in before | after if before.get(name) != after.get(name)]
    inputs = {name: (before.get(name), after.get(name)) for name in names}
    judged = _judged(first, other)
    if isinstance(judged, str):
        return Comparison(other.path.name, inputs, None, f"not compared: {judged}")
    sentence = " ".join(in_words(judged, f"{other.path.name}'s configuration", f"{first.path.name}'s"))
    return Comparison(other.path.name, inputs, judged, f"{judged.kind}: {sentence}")


def _judged(first: RunDir, other: RunDir) -> Judgement | str:
    """Return the judgement, or the reason why the runs cannot be compared."""
    if not all(scored_models(run.state, "selected") for run in (first, other)):
        return "not both are tested"
    if _training_data(first.state) != _training_data(other.state):
        return "they were trained on different data"
    found, reference = (predictions_of(run, "selected") for run in (other, first))
    if not found or not reference or not np.array_equal(found[0].labels, reference[0].labels):
        return "the records do not hold answers on the same test images"
    assert first.state.started is not None
    spec = first.state.started.spec
    return judge(found, reference, spec.report, spec.decided_by)


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
