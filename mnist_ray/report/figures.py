"""The figures of a report: each function takes what was computed and returns one plotly figure.

Colours, grids and fonts come from the page, which is light or dark.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna import visualization

from mnist_ray.config import Objective
from mnist_ray.record.predictions import Predictions
from mnist_ray.record.timing import TrialTime
from mnist_ray.report.analysis.batch_sizes import BatchSize
from mnist_ray.report.analysis.importance import Importances
from mnist_ray.report.analysis.optimism import Optimism
from mnist_ray.report.analysis.scores import cost
from mnist_ray.report.analysis.search_review import SearchReview

# Longer searches are shown as an even sample, since the page holds each trial and the browser draws it.
MOST_CURVES = 200  # trials in the figure of intermediate values
MOST_DOTS = 500  # trials in figures that hold a text for each


def learning_curves(history: pd.DataFrame, labels: Mapping[str, str], metric: str) -> go.Figure:
    """Draw a metric by epoch. history: as the history table; labels: the trainings' names for people, by id."""
    figure = go.Figure()
    for training_id, label in labels.items():
        rows = history[history["id"] == training_id]
        figure.add_scatter(
            x=rows["epoch"].astype(int).tolist(),
            y=rows[metric].astype(float).tolist(),
            name=label,
            mode="lines",
        )
    return figure.update_layout(xaxis_title="epoch", yaxis_title=metric, yaxis_type="log" if "loss" in metric else None)


def best_so_far(review: SearchReview) -> go.Figure:
    """Draw the best score after so many trials, and what random search would have reached."""
    figure = go.Figure()
    sign = cost(review.search, 1)  # turns costs back into scores
    if review.expectation is not None:
        numbers = list(range(1, len(review.expectation.mean) + 1))
        low, mean, high = (
            [sign * value for value in values]
            for values in (review.expectation.low, review.expectation.mean, review.expectation.high)
        )
        figure.add_scatter(
            x=numbers + numbers[::-1],
            y=high + low[::-1],
            fill="toself",
            line_width=0,
            hoverinfo="skip",
            name="random search, 5 to 95 %",
            opacity=0.4,
        )
        figure.add_scatter(x=numbers, y=mean, name="random search, expected", line_dash="dash", mode="lines")
    figure.add_scatter(
        x=[number for number, _ in review.best_so_far],
        y=[sign * value for _, value in review.best_so_far],
        name="this search",
        line_shape="hv",
        mode="lines",
    )
    return figure.update_layout(xaxis_title="trials", yaxis_title=f"best {review.search.objective}")


def optimism(shifts: Sequence[Optimism], objective: Objective) -> go.Figure:
    """Draw the search's scores of its best configurations beside those on fresh seeds."""
    figure = go.Figure()
    names = [each.training_id for each in shifts]
    figure.add_scatter(
        x=names,
        y=[each.search_score for each in shifts],
        mode="markers",
        name="in the search",
        marker_symbol="diamond-open",
        marker_size=11,
    )
    figure.add_scatter(
        x=[each.training_id for each in shifts for _ in each.fresh],
        y=[score for each in shifts for score in each.fresh],
        mode="markers",
        name="on fresh seeds",
        marker_size=8,
    )
    return figure.update_layout(xaxis_title="configuration", yaxis_title=objective)


def importance_bars(importances: Importances) -> go.Figure:
    """Draw each hyperparameter's share with its interval."""
    shares = importances.shares[::-1]
    figure = go.Figure(
        go.Bar(
            x=[each.share for each in shares],
            y=[each.name for each in shares],
            orientation="h",
            error_x={
                "type": "data",
                "array": [each.high - each.share for each in shares],
                "arrayminus": [each.share - each.low for each in shares],
            },
        )
    )
    return figure.update_layout(xaxis_title="importance (PED-ANOVA)", xaxis_range=[0, 1])


def batch_sizes(sizes: Sequence[BatchSize], objective: Objective) -> go.Figure:
    """Draw the speed and the best score of each batch size."""
    figure = go.Figure()
    figure.add_bar(
        x=[str(each.batch_size) for each in sizes], y=[each.images_per_s for each in sizes], name="images per second"
    )
    scored = [each for each in sizes if each.best is not None]
    figure.add_scatter(
        x=[str(each.batch_size) for each in scored],
        y=[each.best for each in scored],
        name=f"best {objective}",
        mode="markers",
        marker_size=12,
        yaxis="y2",
    )
    return figure.update_layout(
        xaxis={"title": "batch size", "type": "category"},
        yaxis_title="images per second, in training",
        yaxis2={"title": objective, "overlaying": "y", "side": "right", "showgrid": False},
    )


def confusion(predictions: Predictions) -> go.Figure:
    """Draw the confusion matrix, a row a true class. Right predictions have no colour, or no other would show."""
    matrix = predictions.confusion()
    shown = matrix.astype(float)
    np.fill_diagonal(shown, np.nan)
    classes = [str(number) for number in range(predictions.num_classes)]
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(value) else int(value) for value in row] for row in shown],
            x=classes,
            y=classes,
            text=matrix.tolist(),
            texttemplate="%{text}",
            colorscale="Blues",
            hovertemplate="true %{y}, predicted %{x}: %{text}<extra></extra>",
            showscale=False,
        )
    )
    for number in range(predictions.num_classes):
        figure.add_annotation(x=number, y=number, text=str(matrix[number, number]), showarrow=False)
    return figure.update_layout(
        xaxis={"title": "predicted", "type": "category", "showgrid": False},
        yaxis={"title": "true", "type": "category", "autorange": "reversed", "showgrid": False},
    )


def reliability(predictions: Predictions) -> go.Figure:
    """Draw the share of right predictions by confidence."""
    bins = predictions.reliability()
    figure = go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line_dash="dot", name="as sure as right")
    figure.add_scatter(
        x=[each.confidence for each in bins],
        y=[each.accuracy for each in bins],
        mode="lines+markers",
        name="this model",
        text=[f"{each.num_examples:,} images" for each in bins],
        marker_size=[6 + 3 * float(np.log10(each.num_examples)) for each in bins],
    )
    return figure.update_layout(xaxis_title="confidence", yaxis_title="share of right predictions")


def time_bars(times: Sequence[TrialTime]) -> go.Figure:
    """Draw the parts of each training's time."""
    figure = go.Figure()
    for part in ("start_up_s", "computing_s", "waiting_s"):
        figure.add_bar(
            x=[each.training_id for each in times],
            y=[getattr(each, part) for each in times],
            name=part.removesuffix("_s").replace("_", "-"),
        )
    return figure.update_layout(barmode="stack", xaxis_title="training", yaxis_title="seconds")


def optuna_figures(study: optuna.Study, objective: Objective) -> dict[str, go.Figure]:
    """Return Optuna's own figures by name, without those that need a complete trial where there is none."""
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    found = {
        "timeline": visualization.plot_timeline(_sampled(study, MOST_DOTS)),
        "intermediate": visualization.plot_intermediate_values(_sampled(study, MOST_CURVES)),
    }
    if complete:
        few = _sampled(study, MOST_DOTS, complete)
        found |= {
            "history": visualization.plot_optimization_history(study, target_name=objective),
            "parallel": visualization.plot_parallel_coordinate(few, target_name=objective),
            "slice": visualization.plot_slice(study, target_name=objective),
            "rank": visualization.plot_rank(few, target_name=objective),
        }
    for figure in found.values():  # the page has its own titles, grounds and text colours
        figure.update_layout(title=None, plot_bgcolor=None)
        figure.update_annotations(font_color=None)
    return found


def _sampled(study: optuna.Study, most: int, trials: Sequence[optuna.trial.FrozenTrial] | None = None) -> optuna.Study:
    """Return a study of at most `most` trials, an even sample with the best complete one; `trials`: by default all."""
    trials = study.get_trials(deepcopy=False) if trials is None else trials
    if len(trials) <= most:
        return study
    kept = {int(index) for index in np.linspace(0, len(trials) - 1, most)}
    valued = [index for index, trial in enumerate(trials) if trial.state == optuna.trial.TrialState.COMPLETE]
    if valued:
        pick = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
        kept.add(pick(valued, key=lambda index: trials[index].value or 0.0))
    sample = optuna.create_study(direction=study.direction)
    sample.add_trials([trials[index] for index in sorted(kept)])
    return sample
