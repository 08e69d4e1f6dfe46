"""Numbers, times and names as a report shows them."""

from mnist_ray.config import Hyperparameters, Recipe, TrainingParts
from mnist_ray.report.analysis.significance import Interval

HYPERPARAMETERS = tuple(Hyperparameters.model_fields)


def heading(column: str) -> str:
    """Return a column's name for people: val_loss -> "val loss"."""
    return column.replace("_", " ")


def number(value: float | str) -> str:
    """Return a text or a whole number as it is, any other with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def interval_in_percent(interval: Interval) -> str:
    """Return an interval of accuracies: "97.98 to 99.03 %"."""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f} %"


def points(difference: float) -> str:
    """Return a difference of accuracies: 0.0012 -> "+0.12 points"."""
    return f"{100 * difference:+.2f} points".replace("-", "−")


def epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"


def minute(at: str) -> str:
    """Return a recorded time, to the minute."""
    return f"{at[:10]} {at[11:16]} UTC"


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def hyperparameters_in_words(values: Hyperparameters) -> str:
    """Return the recipe's values and the parts in use: "learning_rate 0.001, ..., schedule cosine, warmup 0.05"."""
    in_use = [name for name in HYPERPARAMETERS if name in Recipe.model_fields or _is_in_use(values, name)]
    return ", ".join(f"{name} {number(getattr(values, name))}" for name in in_use)


def _is_in_use(values: Hyperparameters, part: str) -> bool:
    if part == "warmup":
        return values.schedule != "constant"
    return bool(getattr(values, part) != TrainingParts.model_fields[part].default)
