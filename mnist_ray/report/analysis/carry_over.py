"""The step from a short search to a long retraining: what one need not say about the other."""

from collections.abc import Iterable
from statistics import fmean

from mnist_ray.config import Hyperparameters, JobSpec
from mnist_ray.record.models import scored_models
from mnist_ray.record.selection import last_score
from mnist_ray.record.state import RunState, Training
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.scores import cost
from mnist_ray.report.formatting import epochs, points


def describe_carry_over(state: RunState, spec: JobSpec) -> list[Finding]:
    """Say that the budgets differ, and how far ahead the selected configuration was after either of them."""
    short, long = spec.search.num_epochs, spec.tested_epochs
    if short == long:
        return []
    text = (
        f"Trials of the search had up to {epochs(short)}, the tested models {long}: what is best after {short} "
        f"need not be best after {long}."
    )
    selected, baseline = (
        [model.score.accuracy for model in scored_models(state, side)] for side in ("selected", "baseline")
    )
    lead = _lead_in_search(state, spec)
    if selected and baseline and lead is not None:
        text += (
            f" Here the selected configuration was {abs(lead):.2g} {'better' if lead > 0 else 'worse'} than the "
            f"baseline in {spec.search.objective} in the search; after {epochs(long)} the test accuracies differ by "
            f"{points(fmean(selected) - fmean(baseline))}."
        )
    return [Finding(text)]


def _lead_in_search(state: RunState, spec: JobSpec) -> float | None:
    """Return by how much the selected trial beat the baseline's; None where either is missing or went further."""
    baseline = _trial_of(spec.baseline, state.trainings("search"))
    selected_id = state.selected.training if state.selected else None
    selected = state.training(selected_id) if selected_id else None
    if baseline is None or selected is None or baseline.epochs_done != selected.epochs_done:
        return None
    search = spec.search
    return cost(search, last_score(search, baseline)) - cost(search, last_score(search, selected))


def _trial_of(values: Hyperparameters, trials: Iterable[Training]) -> Training | None:
    """Return the first trial of a configuration that has an epoch."""
    names = Hyperparameters.model_fields
    for trial in trials:
        if trial.history and all(getattr(trial.config, name) == getattr(values, name) for name in names):
            return trial
    return None
