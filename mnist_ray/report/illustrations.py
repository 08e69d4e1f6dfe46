"""The figures that a report has, in their order, each with its title and its caption."""

from dataclasses import dataclass
from datetime import UTC

import numpy as np
import plotly.graph_objects as go

from mnist_ray.record.models import retrained_models
from mnist_ray.record.study import study_of
from mnist_ray.record.timing import num_retrained_at_once, training_times
from mnist_ray.report import figures
from mnist_ray.report.analysis.search_review import SearchReview
from mnist_ray.report.formatting import heading, percent
from mnist_ray.report.review import Review

MOST_TIMED = 200  # trainings in the figure of times


@dataclass(frozen=True)
class Illustration:
    """A figure with what stands beside it on the page."""

    id: str
    drawing: go.Figure
    title: str
    caption: str
    alt: str
    is_tall: bool = False


def curves(review: Review) -> list[Illustration]:
    """Return the training curves of the retrained models."""
    labels = {model.training.id: model.label for model in retrained_models(review.state) if model.training.history}
    return [
        Illustration(
            metric,
            figures.learning_curves(review.history, labels, metric),
            heading(metric),
            "Measured while learning, with dropout on. The retraining has no validation split.",
            f"{metric} by epoch for {', '.join(labels.values())}",
        )
        for metric in ("train_loss", "train_accuracy")
        if labels
    ]


def search_illustrations(review: Review) -> list[Illustration]:
    """Return what shows the search, as far as there is something to show."""
    search = review.search
    if search is None:
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
            f"Importance of each hyperparameter for {objective} after epoch {found.epoch}, with bootstrap intervals "
            f"over {found.num_trials} trials."
        )
        shown.append(_captioned("importances", figures.importance_bars(found), "What mattered", caption))
    shown += _optuna_illustrations(review)
    if search.batch_sizes:
        drawing = figures.batch_sizes(search.batch_sizes, objective)
        caption = "Bars: images per second in training; dots: the best score of a complete trial."
        shown.append(_captioned("batch_sizes", drawing, "Batch size, for speed and for score", caption))
    return shown


def _captioned(name: str, drawing: go.Figure, title: str, caption: str) -> Illustration:
    is_tall = name in ("parallel", "slice", "rank")
    return Illustration(name, drawing, title, caption, f"{title}. {caption}", is_tall)


def _of_random(search: SearchReview) -> str:
    if search.expectation is None:
        return "The search began with too few random trials to say what random search would have reached."
    return (
        f"Random search is estimated from the {search.expectation.num_random} random trials that the search began with "
        "(Dodge et al. 2019), stopped ones at their last score; beyond that number the estimate is too pessimistic "
        "for random search, because no better trial than theirs is known."
    )


OPTUNA_TITLES = {
    "history": ("Optimization history", "Each complete trial's score, and the best until then."),
    "intermediate": ("Intermediate values", "Each trial's score after each epoch; the short ones were stopped early."),
    "parallel": ("Parallel coordinates", "Each line is a complete trial; the darker, the better its score."),
    "slice": ("Slices", "Each hyperparameter against the score, coloured by trial number."),
    "rank": ("Ranks", "Pairs of hyperparameters, coloured by the rank of the score."),
    "timeline": ("Timeline", "When each trial ran (UTC), coloured by how it ended."),
}


def _optuna_illustrations(review: Review) -> list[Illustration]:
    """Return Optuna's own figures; the captions of sampled ones say so."""
    trials = [trial for trial in review.state.trainings("search") if trial.ended]
    if not trials:
        return []
    search = review.spec.search
    num_complete = sum(trial.status == "complete" for trial in trials)
    limits = {
        "intermediate": (figures.MOST_CURVES, len(trials)),
        "timeline": (figures.MOST_DOTS, len(trials)),
        "parallel": (figures.MOST_DOTS, num_complete),
        "rank": (figures.MOST_DOTS, num_complete),
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
    return [
        Illustration(
            "confusion",
            figures.confusion(predictions),
            "Confusion matrix",
            "Rows: true class; columns: predicted class. Errors are coloured.",
            f"Confusion matrix of {len(predictions.labels):,} test images, {predictions.num_wrong} of them wrong.",
            is_tall=True,
        ),
        Illustration(
            "reliability",
            figures.reliability(predictions),
            "Reliability",
            "How often predictions of a confidence are right; on the dotted line confidence and accuracy are equal.",
            f"Reliability diagram; expected calibration error {percent(predictions.calibration_error())}.",
        ),
    ]


def time_illustrations(review: Review) -> list[Illustration]:
    """Return what shows where the time went."""
    times = training_times(review.trainings(), num_retrained_at_once(review.state))
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
