"""Numbers, times and names as a report shows them."""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from mnist_ray.config import Hyperparameters, Recipe, TrainingParts
from mnist_ray.record.state import Training
from mnist_ray.statistics import Interval

HYPERPARAMETERS = tuple(Hyperparameters.model_fields)


def heading(column: str) -> str:
    """Return a column's name for people: val_loss -> "val loss"."""
    return column.replace("_", " ")


def metric_in_words(column: str) -> str:
    """Return a metric's name in a sentence: val_loss -> "validation loss"."""
    return heading(column).replace("val ", "validation ").replace("train ", "training ")


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


def loss_difference(difference: float) -> str:
    """Return a difference of losses: -0.00123 -> "−0.0012"."""
    return f"{difference:+.4f}".replace("-", "−")


def interval_of(interval: Interval, form: Callable[[float], str]) -> str:
    """Return an interval of differences: "+0.01 to +0.12 points"."""
    return f"{form(interval.low).removesuffix(' points')} to {form(interval.high)}"


def epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 training", "1,200 trainings"."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def listed(values: Iterable[object]) -> str:
    """Return values as a list in a sentence: "0, 1 and 2"."""
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last


def minute(at: str) -> str:
    """Return a recorded time, to the minute."""
    return f"{at[:10]} {at[11:16]} UTC"


def seconds(value: float) -> str:
    return f"{value:,.1f} s"


def duration(value: float) -> str:
    """Return seconds in the unit that people would use: "7.2 s", "3.5 min", "1.3 h"."""
    if value < 60:
        return seconds(value)
    return f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:,.1f} h"


def hyperparameter(values: Hyperparameters, name: str) -> str:
    """Return a configuration's value as a table shows it; "–" for a part that the configuration does not use."""
    is_shown = name in Recipe.model_fields or _is_in_use(values, name)
    return number(getattr(values, name)) if is_shown else "–"


def hyperparameters_in_words(values: Hyperparameters) -> str:
    """Return the recipe's values and the parts in use: "learning_rate 0.001, ..., schedule cosine, warmup 0.05"."""
    return ", ".join(f"{name} {number(getattr(values, name))}" for name in hyperparameters_in_use([values]))


def hyperparameters_in_use(trainings: Iterable[Hyperparameters]) -> list[str]:
    """Return the recipe's names, and those of the parts that one of the trainings uses, in the order of the spec."""
    trainings = list(trainings)
    return [
        name
        for name in HYPERPARAMETERS
        if name in Recipe.model_fields or any(_is_in_use(values, name) for values in trainings)
    ]


def columns_in_use(columns: Sequence[str], trainings: Iterable[Training]) -> list[str]:
    """Return a table's columns without the hyperparameters that no training uses."""
    shown = hyperparameters_in_use(training.config for training in trainings)
    return [name for name in columns if name not in HYPERPARAMETERS or name in shown]


def without_unused_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of trainings in which the parts that a training does not use are missing values."""
    shown = table.copy()
    for name, field in TrainingParts.model_fields.items():
        unused = table["schedule"] == "constant" if name == "warmup" else table[name] == field.default
        shown[name] = table[name].mask(unused)
    return shown


def _is_in_use(values: Hyperparameters, part: str) -> bool:
    if part == "warmup":
        return values.schedule != "constant"
    return bool(getattr(values, part) != TrainingParts.model_fields[part].default)
