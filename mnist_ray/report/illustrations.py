"""The figures that a report has, in their order, each with its title and its caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from mnist_ray.record.models import retrained_models
from mnist_ray.record.selection import RECIPE
from mnist_ray.record.state import Training
from mnist_ray.record.study import study_of
from mnist_ray.report import figures
from mnist_ray.report.analysis.search_review import SearchReview
from mnist_ray.report.analysis.verdict import evidence
from mnist_ray.report.errors import MOST_CLASSES
from mnist_ray.report.formatting import counted, epochs, heading, listed, metric_in_words, percent
from mnist_ray.report.review import Review

MOST_TIMED = 200  # trainings in the figure of times
FEWEST_COMPLETE = 8  # trials; figures of fewer show their axes and little else
BAND = "Lines: means over seeds; bands: from the lowest seed to the highest."

Size = Literal["low", "usual", "tall", "wide", "large"]  # report.css says what each takes


@dataclass(frozen=True)
class Illustration:
    """A figure with what stands beside it on the page."""

    id: str
    drawing: go.Figure
    title: str
    caption: str
    alt: str
    size: Size = "usual"


def roles(review: Review) -> list[Illustration]:
    """Return the seeds of both roles with the difference's interval, the deciding quantity first."""
    quantities = review.verdict.judgement.quantities
    shown = []
    for name in sorted(quantities, key=lambda name: name != review.spec.decided_by):
        found = quantities[name].difference
        caption = (
            "One dot per seed, with a bar at their mean. Below them the difference with its 95 % interval, measured "
            "from the baseline's mean (dotted). Differences in the shaded range are too small to matter by the "
            "spec's rule."
        )
        alt = f"Seeds of both roles by {heading(name)}: {evidence(name, found)}"
        drawing = figures.seeds_by_role(review.roles, quantities[name], name)
        shown.append(Illustration(f"seeds_{name}", drawing, heading(name).capitalize(), caption, alt, "low"))
    return shown


def curves(review: Review) -> list[Illustration]:
    """Return the curves of both roles: on validation from the final round, then in training from the tested models."""
    tested: dict[str, list[Training]] = {}
    for model in retrained_models(review.state):
        tested.setdefault(model.side, []).append(model.training)
    selected = review.state.selected
    if selected and selected.hyperparameters == review.spec.baseline:
        final = {"selected configuration = baseline": _finals_of(review, RECIPE)}
    else:
        mine = _finals_of(review, selected.training if selected else None)
        final = {"selected configuration": mine, "baseline": _finals_of(review, RECIPE)}
    parts = [
        (final, ("val_loss", "val_accuracy"), "On the validation split, in the final round."),
        (tested, ("train_loss", "train_accuracy"), "Of the tested models, measured while learning, with dropout on."),
    ]
    return [
        Illustration(
            metric,
            figures.curves_by_role(review.history, groups, metric),
            metric_in_words(metric).capitalize(),
            f"{caption} {BAND}" if any(len(group.ids) > 1 for group in groups) else caption,
            f"{metric_in_words(metric)} by epoch for {listed(group.name for group in groups)}",
        )
        for by_role, metrics, caption in parts
        if (groups := _groups(by_role))
        for metric in metrics
    ]


def _finals_of(review: Review, name: str | None) -> list[Training]:
    return [training for training in review.state.trainings("final") if training.of == name]


def _groups(by_role: Mapping[str, Sequence[Training]]) -> list[figures.CurveGroup]:
    """Return the roles that have an epoch on record, each in its colour."""
    return [
        figures.CurveGroup(role, ids, figures.ROLE_COLOURS["selected" if role.startswith("selected") else "baseline"])
        for role, trainings in by_role.items()
        if (ids := [training.id for training in trainings if training.history])
    ]


def search_note(review: Review) -> str:
    """Say why there are no figures of a search; empty where there are some."""
    if review.search is None or (num_complete := review.search.spending.counts.get("complete", 0)) >= FEWEST_COMPLETE:
        return ""
    return (
        f"No figures of this search: {counted(num_complete, 'trial')} reached the full budget, and figures are drawn "
        f"from {FEWEST_COMPLETE} on."
    )


def search_illustrations(review: Review) -> list[Illustration]:
    """Return what shows the search; nothing before FEWEST_COMPLETE trials are complete."""
    search = review.search
    if search is None or search_note(review):
        return []
    objective = search.search.objective
    shown = []
    if search.best_so_far:
        shown.append(
            _captioned("best", figures.best_so_far(search), "Best so far, against random search", _of_random(search))
        )
    if search.optimism:
        caption = "The search's score of its best configurations, and their scores on fresh seeds."
        shown.append(_captioned("optimism", figures.optimism(search.optimism, objective), "Optimism", caption))
    if review.importances is not None and review.importances.shares:
        found = review.importances
        caption = (
            f"Importance of each hyperparameter for {heading(objective)} after {epochs(found.epoch)}, with bootstrap "
            f"intervals over {found.num_trials} trials."
        )
        shown.append(_captioned("importances", figures.importance_bars(found), "What mattered", caption))
    shown += _optuna_illustrations(review)
    if search.batch_sizes:
        drawing = figures.batch_sizes(search.batch_sizes, objective)
        caption = "Bars: images per second in training; dots: the best score of a complete trial."
        shown.append(_captioned("batch_sizes", drawing, "Batch size, for speed and for score", caption))
    return shown


def _captioned(name: str, drawing: go.Figure, title: str, caption: str) -> Illustration:
    size: Size = "wide" if name in ("parallel", "slice") else "usual"
    return Illustration(name, drawing, title, caption, f"{title}. {caption}", size)


def _of_random(search: SearchReview) -> str:
    same = f"All trials at the same epoch, {search.epoch}, which each of them reaches."
    if search.expectation is None:
        return f"{same} The search began with too few random trials to say what random search would have reached."
    return (
        f"{same} Random search is estimated from the {search.expectation.num_random} random trials that the search "
        "began with (Dodge et al. 2019); beyond that number the estimate is too pessimistic for random search, because "
        "no better trial than theirs is known."
    )


OPTUNA_TITLES = {
    "history": ("Optimization history", "Each complete trial's score, and the best until then."),
    "intermediate": ("Intermediate values", "Each trial's score after each epoch; the short ones were stopped early."),
    "parallel": (
        "Parallel coordinates",
        "Each line is a complete trial: green is best, pink is worst.",
    ),
    "slice": ("Slices", "Each hyperparameter against the score, coloured by trial number."),
    "timeline": ("Timeline", "When each trial ran (UTC), coloured by how it ended."),
}


def _optuna_illustrations(review: Review) -> list[Illustration]:
    """Return Optuna's own figures; the captions of sampled ones say so."""
    trials = [trial for trial in review.state.trainings("search") if trial.ended]
    search = review.spec.search
    num_complete = sum(trial.status == "complete" for trial in trials)
    limits = {
        "intermediate": (figures.MOST_CURVES, len(trials)),
        "timeline": (figures.MOST_DOTS, len(trials)),
        "parallel": (figures.MOST_DOTS, num_complete),
    }
    shown = []
    for name, drawing in figures.optuna_figures(study_of(review.spec, trials, UTC), search.objective).items():
        title, caption = OPTUNA_TITLES[name]
        most, total = limits.get(name, (0, 0))
        sampled = f" The best and an even sample of {most} of {total:,}." if total > most else ""
        shown.append(_captioned(name, drawing, title, caption + sampled))
    return shown


def error_illustrations(review: Review) -> list[Illustration]:
    """Return what shows the errors of the selected model."""
    predictions = review.predictions
    if predictions is None:
        return []
    shown = []
    if len(review.class_names) <= MOST_CLASSES:
        shown.append(
            Illustration(
                "confusion",
                figures.confusion(predictions, review.class_names),
                "Confusion matrix",
                "Rows: true class; columns: predicted class. Errors are coloured.",
                f"Confusion matrix of {len(predictions.labels):,} test images, {predictions.num_wrong} of them wrong.",
                "tall" if len(review.class_names) <= figures.MOST_CLASSES_WITH_NUMBERS else "large",
            )
        )
    reliability = Illustration(
        "reliability",
        figures.reliability(predictions),
        "Reliability",
        "How often predictions of a confidence are right; on the dotted line confidence and accuracy are equal.",
        f"Reliability diagram; expected calibration error {percent(predictions.calibration_error())}.",
    )
    return [*shown, reliability]


def time_illustrations(review: Review) -> list[Illustration]:
    """Return what shows where the time went."""
    times = review.times()
    if not times:
        return []
    is_sampled = len(times) > MOST_TIMED
    shown = [times[int(index)] for index in np.linspace(0, len(times) - 1, MOST_TIMED)] if is_sampled else times
    sampled = f" An even sample of {len(shown)} of {len(times)}." if is_sampled else ""
    caption = (
        "Start-up: from the moment when the training's slot was free to its first epoch's beginning. The queue before "
        "that is not drawn. Waiting: for its process, for the driver, or for a new start after a "
        f"failure.{sampled}"
    )
    alt = f"Time of each of {len(shown)} trainings, by part"
    return [Illustration("times", figures.time_bars(shown), "Time of each training", caption, alt)]
