"""The edges of a search space: whether the best value lies at one, and the wider space to search next."""

import math
from collections.abc import Mapping, Sequence

import yaml
from pydantic import ValidationError

from mnist_ray.config import Choices, Dimension, Hyperparameters, JobSpec, Range, is_text, is_whole
from mnist_ray.record.events import ConfigurationSelected
from mnist_ray.record.state import Training
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.formatting import number

EDGE = 0.05  # of a range's width: the best value lies at the edge
NEAR_EDGE = 0.15  # where most of the other good ones must lie for that to count


def warn_of_edges(
    spec: JobSpec, candidates: Sequence[Training], selected: ConfigurationSelected | None
) -> list[Finding]:
    """Warn where the selected trial, or the best candidate before a selection, lies at an end that can be moved.

    candidates: best first.
    """
    candidates = [trial for trial in candidates if spec.is_in_space(trial.config.hyperparameters)]
    if not candidates:
        return []
    selected_id = selected.training if selected else None
    best = next((trial for trial in candidates if trial.id == selected_id), candidates[0])
    good = candidates[: spec.final.top_k if spec.final else 3]
    widened: dict[str, Dimension] = {}
    ends = []
    for key, dimension in spec.search.space.items():
        if is_text(key):
            continue  # words have no order
        value = getattr(best.config, key)
        end = edge(dimension, value, [getattr(trial.config, key) for trial in good])
        wider = widen(key, dimension, end) if end else None
        if wider:
            widened[key] = wider
            ends.append(f"{key} {number(value)} at its {end} end")
    if not widened:
        return []
    text = (
        f"The best value lies at the edge of the space, so a better one may lie beyond: {', '.join(ends)}. "
        "Search again in the wider space below."
    )
    return [Finding(text, is_warning=True, patch=space_patch(spec.search.space | widened))]


def edge(dimension: Dimension, best: float, good: Sequence[float]) -> str | None:
    """Return the end of a dimension at which the best value lies, "low" or "high"; None if most good ones do not.

    A value beside a range lies at none of its ends.
    """
    if isinstance(dimension, Choices):
        low, high = min(_numbers(dimension)), max(_numbers(dimension))
        if low == high:
            return None
        is_near = {"low": [value == low for value in good], "high": [value == high for value in good]}
        at = "low" if best == low else "high" if best == high else None
    else:
        if dimension.low == dimension.high or best == dimension.off:
            return None
        good = [value for value in good if value != dimension.off]
        depth = _position(dimension, best)
        at = "low" if depth <= EDGE else "high" if depth >= 1 - EDGE else None
        positions = [_position(dimension, value) for value in good]
        is_near = {
            "low": [position <= NEAR_EDGE for position in positions],
            "high": [position >= 1 - NEAR_EDGE for position in positions],
        }
    return at if at and sum(is_near[at]) * 2 > len(good) else None


def _numbers(dimension: Choices) -> list[float]:
    return [choice for choice in dimension.choices if not isinstance(choice, str)]


def _position(dimension: Range, value: float) -> float:
    """Return 0 at the low end to 1 at the high one, on the dimension's own scale."""
    low, high = dimension.ends
    if dimension.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def widen(key: str, dimension: Dimension, end: str) -> Dimension | None:
    """Return a dimension half as wide again at an end, or with one value more; None where no value lies beyond."""
    if isinstance(dimension, Choices):
        beyond = min(_numbers(dimension)) / 2 if end == "low" else max(_numbers(dimension)) * 2
        beyond = int(beyond) if is_whole(key) else beyond
        if beyond in dimension.choices or not _is_allowed(key, beyond):
            return None
        return Choices(choices=tuple(sorted([*_numbers(dimension), beyond])))
    low, high = dimension.ends
    if dimension.log:
        factor = math.sqrt(high / low)
        moved = low / factor if end == "low" else high * factor
    else:
        moved = low - (high - low) / 2 if end == "low" else high + (high - low) / 2
    allowed = _within_limits(key, moved, low if end == "low" else high)
    if allowed is None:
        return None
    moved_end = {"low": allowed} if end == "low" else {"high": allowed}
    return dimension.model_copy(update=moved_end)


def _within_limits(key: str, moved: float, end: float) -> float | None:
    """Return `moved`, or how much of the way from `end` to `moved` is allowed; None if nothing is."""
    for share in (1.0, 0.75, 0.5, 0.25):
        value = end + share * (moved - end)
        value = int(value) if is_whole(key) else float(f"{value:.2g}")
        if value != end and _is_allowed(key, value):
            return value
    return 0.0 if moved < 0 < end and _is_allowed(key, 0.0) else None


def _is_allowed(key: str, value: float) -> bool:
    try:
        Hyperparameters.model_validate({key: value})
    except ValidationError:
        return False
    return True


def space_patch(space: Mapping[str, Dimension]) -> str:
    """Return YAML that takes the place of a spec's search.space."""
    values = {key: dimension.model_dump(mode="json", exclude_none=True) for key, dimension in space.items()}
    text: str = yaml.safe_dump({"search": {"space": values}}, sort_keys=False, default_flow_style=None)
    return text
