"""Which figures a report has, and what stands below each. The drawings are collected by their id."""

from dataclasses import dataclass
from datetime import UTC

import numpy as np
import plotly.graph_objects as go

from mnist_ray.record.study import study_of
from mnist_ray.record.timing import training_times
from mnist_ray.report import figures
from mnist_ray.report.analysis.search_quality import SearchReview
from mnist_ray.report.review import Review, ended_trials
from mnist_ray.report.summary import retrained_rows

MOST_TIMED = 200  # trainings in the figure of times


@dataclass(frozen=True)
class Figure:
    """A figure's place on the page; the drawing is kept by its id."""

    id: str
    title: str
    caption: str
    alt: str
    is_tall: bool = False


def curves(review: Review, drawn: dict[str, go.Figure]) -> list[Figure]:
    rows = retrained_rows(review.table).to_dict("records")
    labels = {row["id"]: f"{row['role']}, seed {row['seed']}" for row in rows if row["epochs_done"]}
    if not labels:
        return []
    placed = []
    for metric in ("train_loss", "train_accuracy"):
        drawn[metric] = figures.learning_curves(review.history, labels, metric)
        caption = "Measured while learning, with dropout on. The retraining has no validation split."
        alt = f"{metric} by epoch for {', '.join(labels.values())}"
        placed.append(Figure(metric, metric.replace("_", " "), caption, alt))
    return placed


def search_figures(review: Review, drawn: dict[str, go.Figure]) -> list[Figure]:
    search = review.search
    if search is None:
        return []
    objective = review.spec.search.objective
    placed = []

    def place(name: str, figure: go.Figure, title: str, caption: str, is_tall: bool = False) -> None:
        drawn[name] = figure
        placed.append(Figure(name, title, caption, f"{title}. {caption}", is_tall))

    if search.best_so_far:
        place(
            "best",
            figures.best_so_far(search, objective),
            "Best so far, against random search",
            _random_caption(search),
        )
    if search.optimism:
        place("optimism", figures.optimism(search, objective), "Optimism",
              "The search's score of its best configurations, and what fresh seeds gave.")  # fmt: skip
    ended, found = ended_trials(review.run), review.importances
    if ended:
        if found is not None and found.shares:
            place("importances", figures.importance_bars(found), "What mattered",
                  f"Importance of each hyperparameter for {objective} after epoch {found.epoch}, with bootstrap "
                  f"intervals over {found.num_trials} trials.")  # fmt: skip
        own = figures.optuna_figures(study_of(review.spec.search, ended, UTC), review.spec)
        for name, figure in own.items():
            title, caption = OPTUNA_TITLES[name]
            caption += _of_all(name, len(ended), search.counts.get("complete", 0))
            place(name, figure, title, caption, is_tall=name in ("parallel", "slice", "rank"))
    if search.batch_sizes:
        place("batch_sizes", figures.batch_sizes(search, objective), "Batch size, for speed and for score",
              "Bars: images per second in training; dots: the best score of a complete trial.")  # fmt: skip
    return placed


OPTUNA_TITLES = {
    "history": ("Optimization history", "Each complete trial's score, and the best until then."),
    "intermediate": ("Intermediate values", "Each trial's score after each epoch; the short ones were stopped early."),
    "parallel": ("Parallel coordinates", "Each line is a complete trial; the darker, the better its score."),
    "slice": ("Slices", "Each hyperparameter against the score, coloured by trial number."),
    "rank": ("Ranks", "Pairs of hyperparameters, coloured by the rank of the score."),
    "timeline": ("Timeline", "When each trial ran (UTC), coloured by how it ended."),
}


def _of_all(name: str, num_ended: int, num_complete: int) -> str:
    """Which part of the trials a figure of Optuna's shows, where it is not all of them."""
    limits = {
        "intermediate": (figures.MOST_CURVES, num_ended),
        "timeline": (figures.MOST_DOTS, num_ended),
        "parallel": (figures.MOST_DOTS, num_complete),
        "rank": (figures.MOST_DOTS, num_complete),
    }
    most, of = limits.get(name, (1, 0))
    return f" The best and an even sample of {most} of {of:,}." if of > most else ""


def _random_caption(search: SearchReview) -> str:
    if search.expectation is None:
        return "The search began with too few random trials to say what random search would have reached."
    return (
        f"Random search is estimated from the {search.expectation.num_random} random trials that the search began with "
        "(Dodge et al. 2019), stopped ones at their last score; beyond that number it is too pessimistic for it, "
        "because no better trial than theirs is known."
    )


def error_figures(review: Review, drawn: dict[str, go.Figure]) -> list[Figure]:
    said = review.choice_said
    if said is None:
        return []
    drawn["confusion"] = figures.confusion(said)
    drawn["reliability"] = figures.reliability(said)
    num_wrong = int((~said.is_right).sum())
    return [
        Figure("confusion", "Confusion matrix", "Rows: true class; columns: what the model said. Errors are coloured.",
               f"Confusion matrix of {len(said.labels):,} test images, {num_wrong} of them wrong.", True),
        Figure("reliability", "Reliability",
               "How often answers of a confidence are right; on the dotted line a model is as sure as it is right.",
               f"Reliability diagram; expected calibration error {100 * said.calibration_error():.2f} %."),
    ]  # fmt: skip


def time_figures(review: Review, drawn: dict[str, go.Figure]) -> list[Figure]:
    times = training_times(review.trainings())
    if not times:
        return []
    shown = (
        times
        if len(times) <= MOST_TIMED
        else [times[int(index)] for index in np.linspace(0, len(times) - 1, MOST_TIMED)]
    )
    drawn["times"] = figures.time_bars(shown)
    of_all = "" if len(shown) == len(times) else f" An even sample of {len(shown)} of {len(times)}."
    caption = (
        "Start-up: from when it was asked for to its first epoch's beginning. Waiting: for its process, for the "
        f"driver, or for a new start after a death.{of_all}"
    )
    return [Figure("times", "Time of each training", caption, f"Time of each of {len(shown)} trainings, by part")]
