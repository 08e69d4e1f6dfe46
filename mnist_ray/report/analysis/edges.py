"""Does the best value lie at the edge of what was searched, and what would a wider search be?"""

import math
from collections.abc import Mapping, Sequence

import yaml
from pydantic import ValidationError

from mnist_ray.config import Choices, Dimension, Hyperparameters, Range, is_whole

EDGE = 0.05  # of a range's width: the best value lies at the edge
NEAR_EDGE = 0.15  # where most of the other good ones must lie for that to count


def edge(dimension: Dimension, best: float, good: Sequence[float]) -> str | None:
    """At which end of a dimension the best value lies, "low" or "high", if most of the good ones lie there too."""
    if isinstance(dimension, Choices):
        low, high = min(dimension.choices), max(dimension.choices)
        if low == high:
            return None
        places = {"low": [value == low for value in good], "high": [value == high for value in good]}
        at = "low" if best == low else "high" if best == high else None
    else:
        if dimension.low == dimension.high:
            return None
        depth = _position(dimension, best)
        at = "low" if depth <= EDGE else "high" if depth >= 1 - EDGE else None
        positions = [_position(dimension, value) for value in good]
        places = {
            "low": [position <= NEAR_EDGE for position in positions],
            "high": [position >= 1 - NEAR_EDGE for position in positions],
        }
    return at if at and sum(places[at]) * 2 > len(good) else None


def _position(dimension: Range, value: float) -> float:
    """From 0 at the low end to 1 at the high one, on the dimension's own scale."""
    low, high = dimension.ends
    if dimension.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def widen(key: str, dimension: Dimension, end: str) -> Dimension | None:
    """The dimension, half as wide again at that end, or with one choice more; None where no value lies beyond."""
    if isinstance(dimension, Choices):
        beyond = min(dimension.choices) / 2 if end == "low" else max(dimension.choices) * 2
        beyond = int(beyond) if is_whole(key) else beyond
        if beyond in dimension.choices or not _is_allowed(key, beyond):
            return None
        return Choices(choices=tuple(sorted([*dimension.choices, beyond])))
    low, high = dimension.ends
    if dimension.log:
        factor = math.sqrt(high / low)
        moved = low / factor if end == "low" else high * factor
    else:
        moved = low - (high - low) / 2 if end == "low" else high + (high - low) / 2
    allowed = _within_limits(key, moved, low if end == "low" else high)
    if allowed is None:
        return None
    return Range(low=allowed if end == "low" else low, high=allowed if end == "high" else high, log=dimension.log)


def _within_limits(key: str, moved: float, end: float) -> float | None:
    """`moved`, or what is allowed of the way to it from `end`; None if that is nothing."""
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
    """YAML that takes the place of a spec's search.space."""
    values = {key: dimension.model_dump(mode="json") for key, dimension in space.items()}
    text: str = yaml.safe_dump({"search": {"space": values}}, sort_keys=False, default_flow_style=None)
    return text
