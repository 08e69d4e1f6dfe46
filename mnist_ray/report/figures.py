"""The figures of a report: each function takes what was computed and returns one plotly figure.

Colours, grids and fonts come from the page, which is light or dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna import visualization
from plotly.colors import sample_colorscale

from mnist_ray.config import DecidedBy, Objective
from mnist_ray.record.judgement import JudgedQuantity
from mnist_ray.record.predictions import Predictions
from mnist_ray.record.timing import TrialTime
from mnist_ray.report.analysis.batch_sizes import BatchSize
from mnist_ray.report.analysis.importance import Importances
from mnist_ray.report.analysis.optimism import Optimism
from mnist_ray.report.analysis.roles import RoleScores
from mnist_ray.report.analysis.scores import cost
from mnist_ray.report.analysis.search_review import SearchReview
from mnist_ray.report.analysis.verdict import FORMAT
from mnist_ray.report.formatting import epochs, heading, interval_of, metric_in_words

# Longer searches are shown as an even sample, since the page holds each trial and the browser draws it.
MOST_CURVES = 200  # trials in the figure of intermediate values
MOST_DOTS = 500  # trials in figures that hold a text for each
MOST_TICKS = 6  # of a hyperparameter's axis
MOST_CLASSES_WITH_NUMBERS = 20  # of a confusion matrix


# These are read on white paper and on the page's dark ground alike: each has a contrast of three or more to both.
ROLE_COLOURS = {"selected": "#2f7de1", "baseline": "#d9730d"}
DIFFERENCE_COLOUR = "#8a6fb8"
SCALE = ("#12877c", "#808890", "#d0476f")  # from the best score to the worst
STATUS_COLOURS = {"complete": "#12877c", "pruned": "#d9730d", "fail": "#d0476f", "running": "#2f7de1"}


def seeds_by_role(roles: Sequence[RoleScores], judged: JudgedQuantity, name: DecidedBy) -> go.Figure:
    """Draw a dot a seed and the mean of each role, and the interval of their difference from the baseline's mean on."""
    figure = go.Figure()
    heights = {role.side: 2.0 - number for number, role in enumerate(roles)}
    for role in roles:
        values, height = role.values(name), heights[role.side]
        apart = np.linspace(0.12, -0.12, len(values)) if len(values) > 1 else np.zeros(1)
        colour = ROLE_COLOURS[role.side]
        figure.add_scatter(
            x=values,
            y=(height + apart).tolist(),
            text=[f"seed {seed}" for seed in role.seeds],
            mode="markers",
            name=role.name,
            marker={"color": colour, "size": 9, "opacity": 0.75},
        )
        figure.add_scatter(
            x=[role.mean(name)],
            y=[height],
            mode="markers",
            name=f"{role.name}, mean",
            marker={"symbol": "line-ns-open", "size": 30, "line": {"width": 3}, "color": colour},
        )
    found, zero = judged.difference, next(role for role in roles if role.side == "baseline").mean(name)
    figure.add_scatter(
        x=[zero + found.value],
        y=[0],
        mode="markers",
        name="difference",
        marker={"color": DIFFERENCE_COLOUR, "size": 10, "symbol": "diamond"},
        error_x={
            "type": "data",
            "array": [found.interval.high - found.value],
            "arrayminus": [found.value - found.interval.low],
            "thickness": 3,
            "width": 7,
        },
    )
    figure.add_shape(
        type="rect", x0=zero - judged.bound, x1=zero + judged.bound, y0=-0.45, y1=0.45, line_width=0,
        fillcolor=DIFFERENCE_COLOUR, opacity=0.18, layer="below",
    )  # fmt: skip
    figure.add_shape(
        type="line", x0=zero, x1=zero, y0=-0.5, y1=2.5, line={"dash": "dot", "width": 2, "color": "#808890"}
    )
    figure.add_annotation(
        x=zero + found.value,
        y=0.32,
        text=f"{FORMAT[name](found.value)} ({interval_of(found.interval, FORMAT[name])})",
        showarrow=False,
    )
    names = [role.name.replace(" ", "<br>", 1) for role in roles]
    return figure.update_layout(
        xaxis={"title": heading(name), "tickformat": ".2%" if name == "test_accuracy" else None, "nticks": 6},
        yaxis={"tickvals": [*heights.values(), 0], "ticktext": [*names, "difference"], "range": [-0.6, 2.6],
               "zeroline": False},
        showlegend=False,
    )  # fmt: skip


@dataclass(frozen=True)
class CurveGroup:
    """Trainings of one role, drawn as their mean and the band between the lowest and the highest."""

    name: str
    ids: list[str]
    colour: str


def curves_by_role(history: pd.DataFrame, groups: Sequence[CurveGroup], metric: str) -> go.Figure:
    """Draw a metric by epoch: a mean for each group, in a band over its trainings. history: as the history table."""
    figure = go.Figure()
    lowest, highest = math.inf, 0.0
    for group in groups:
        values = history[history["id"].isin(group.ids)].groupby("epoch")[metric].agg(["mean", "min", "max"])
        at, (mean, low, high) = values.index.tolist(), (values[each].tolist() for each in ("mean", "min", "max"))
        lowest, highest = min([lowest, *low]), max([highest, *high])
        if len(group.ids) > 1:
            figure.add_scatter(
                x=at + at[::-1],
                y=_rounded(high + low[::-1]),
                fill="toself",
                fillcolor=group.colour,
                opacity=0.2,
                line_width=0,
                hoverinfo="skip",
                showlegend=False,
            )
        name = f"{group.name}, mean of {len(group.ids)}" if len(group.ids) > 1 else group.name
        figure.add_scatter(x=at, y=_rounded(mean), name=name, mode="lines", line_color=group.colour)
    is_log = "loss" in metric and highest > 4 * lowest > 0
    return figure.update_layout(
        xaxis_title="epoch",
        yaxis={
            "title": metric_in_words(metric),
            "type": "log" if is_log else None,
            "tickvals": _log_ticks(lowest, highest) if is_log else None,
            "tickformat": ".4~%" if "accuracy" in metric else None,
        },
    )


def _log_ticks(lowest: float, highest: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in a range: plotly's own ticks leave the powers out."""
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if lowest <= tick <= highest]


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def best_so_far(review: SearchReview) -> go.Figure:
    """Draw the best score after so many trials, and what random search would have reached, all at one epoch."""
    figure = go.Figure()
    sign = cost(review.search, 1)  # turns costs back into scores
    if review.expectation is not None:
        numbers = list(range(1, len(review.expectation.mean) + 1))
        low, mean, high = (
            _rounded([sign * value for value in values])
            for values in (review.expectation.low, review.expectation.mean, review.expectation.high)
        )
        colour = ROLE_COLOURS["baseline"]
        figure.add_scatter(
            x=numbers + numbers[::-1],
            y=high + low[::-1],
            fill="toself",
            fillcolor=colour,
            line_width=0,
            hoverinfo="skip",
            name="random search, 5 to 95 %",
            opacity=0.2,
        )
        figure.add_scatter(
            x=numbers,
            y=mean,
            name="random search, expected",
            line={"dash": "dash", "color": colour},
            mode="lines",
        )
    figure.add_scatter(
        x=[number for number, _ in review.best_so_far],
        y=[sign * value for _, value in review.best_so_far],
        name="this search",
        line={"shape": "hv", "color": ROLE_COLOURS["selected"]},
        mode="lines",
    )
    title = f"best {heading(review.search.objective)} after {epochs(review.epoch)}"
    return figure.update_layout(xaxis_title="trials", yaxis_title=title)


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


def confusion(predictions: Predictions, names: Sequence[str]) -> go.Figure:
    """Draw the confusion matrix, a row a true class. Right predictions have no colour, or no other would show."""
    matrix = predictions.confusion()
    is_error = (matrix > 0) & ~np.eye(len(names), dtype=bool)
    texts = np.where(is_error, matrix.astype(str), "")
    is_small = len(names) <= MOST_CLASSES_WITH_NUMBERS
    figure = go.Figure(
        go.Heatmap(
            z=[
                [int(value) if shown else None for value, shown in zip(row, mask, strict=True)]
                for row, mask in zip(matrix, is_error, strict=True)
            ],
            text=texts.tolist(),
            texttemplate="%{text}" if is_small else None,
            textfont_color="#000000",
            colorscale=[[0, "#f5b066"], [1, "#d9730d"]],  # read on light and dark grounds, and under black numbers
            customdata=[[[row, column] for column in names] for row in names],
            hovertemplate="true %{customdata[0]}, predicted %{customdata[1]}: %{z}<extra></extra>",
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    if is_small:
        for number in range(len(names)):
            figure.add_annotation(x=number, y=number, text=str(matrix[number, number]), showarrow=False)
    positions = list(range(len(names)))
    font = {"size": 12 if is_small else 9}
    axis = {"tickvals": positions, "ticktext": list(names), "tickfont": font, "showgrid": False, "zeroline": False}
    size = {"range": [-0.5, len(names) - 0.5]}
    return figure.update_layout(
        xaxis={"title": "predicted", **axis, **size},
        yaxis={"title": "true", **axis, "range": size["range"][::-1]},
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
    """Return Optuna's own figures by name, in colours that light and dark pages can show.

    Its scale from white to dark blue hides the worst trials on a light page, and the best ones on a dark page.
    """
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    few = _sampled(study, MOST_DOTS, complete)
    found = {
        "history": visualization.plot_optimization_history(study, target_name=objective),
        "parallel": visualization.plot_parallel_coordinate(few, target_name=objective),
        "slice": visualization.plot_slice(study, target_name=objective),
        "intermediate": visualization.plot_intermediate_values(_sampled(study, MOST_CURVES)),
        "timeline": visualization.plot_timeline(_sampled(study, MOST_DOTS)),
    }
    is_minimized = study.direction == optuna.study.StudyDirection.MINIMIZE
    best_first = [list(each) for each in zip((0, 0.5, 1), SCALE if is_minimized else SCALE[::-1], strict=True)]
    lines = found["parallel"].select_traces({"mode": "lines"})
    scores = [(trace, float(trace.y[0])) for trace in lines]  # from 0 to 1: the objective is the first axis
    colours = sample_colorscale(best_first, [score for _, score in scores])
    for (trace, _), colour in zip(scores, colours, strict=True):
        trace.line.color = colour
    for trace in found["parallel"].select_traces({"mode": "markers"}):  # the bar of colours
        trace.marker.update(colorscale=best_first, reversescale=False)
    found["slice"].update_traces(marker={"colorscale": ["#2f7de1", "#b08800"]})  # of the trials' numbers
    for trace in found["timeline"].data:
        trace.name = trace.name.lower()
        trace.marker.color = STATUS_COLOURS.get(trace.name, "#808890")
    found["slice"].update_xaxes(nticks=4, tickangle=0)
    for trace in found["slice"].data:
        axis, values = found["slice"].layout[(trace.xaxis or "x").replace("x", "xaxis")], sorted(set(trace.x))
        if axis.type == "log":
            axis.tickvals = values if len(values) <= MOST_TICKS else _log_ticks(values[0], values[-1])
    found["intermediate"].update_layout(xaxis_title="epoch", yaxis_title=objective)
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
