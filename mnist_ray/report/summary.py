"""What a run came to, in a few lines for a terminal and in a page of Markdown for a pull request."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mnist_ray.config import JobSpec
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.study import direction
from mnist_ray.record.tables import cell, is_superseded, results_table
from mnist_ray.report.analysis.search_quality import SearchReview
from mnist_ray.report.analysis.significance import Interval, wilson
from mnist_ray.report.analysis.verdict import Verdict

HYPERPARAMETER_COLUMNS = ["learning_rate", "dropout", "batch_size"]
RETRAINED_COLUMNS = [
    "role", "status", *HYPERPARAMETER_COLUMNS, "seed", "epochs_done", "test_accuracy", "test_correct", "test_loss",
    "train_loss", "elapsed_s", "workers",
]  # fmt: skip
TRIAL_COLUMNS = [
    "id", "status", *HYPERPARAMETER_COLUMNS, "epochs_done", "val_loss", "val_accuracy", "elapsed_s", "reason",
]  # fmt: skip
MOST_TRIALS_SHOWN = 50


def summary_lines(run: RunDir, verdict: Verdict, review: SearchReview | None) -> list[str]:
    """The trials' counts, the retrained models, warnings and the verdict."""
    table = results_table(run)
    lines = []
    if review is not None:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(review.counts.items()))
        lines.append(f"{sum(review.counts.values())} trials: {counts}")
    lines += [_model_line(row) for row in retrained_rows(table).to_dict("records")]
    lines += [f"warning: {warning.text}" for warning in (review.warnings if review else [])]
    return [*lines, f"verdict: {verdict.sentence}"] if review is not None else lines


def retrained_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The choice's and the recipe's, as they were chosen last."""
    return table[(table["stage"] == "retrain") & ~is_superseded(table)]


def _model_line(row: Mapping[Any, Any]) -> str:
    recipe = ", ".join(f"{name} {row[name]:.4g}" for name in HYPERPARAMETER_COLUMNS)
    if pd.isna(row["test_accuracy"]):
        return f"{row['role']} (seed {row['seed']}): {row['status']}; {recipe}"
    return (
        f"{row['role']} (seed {row['seed']}): test {100 * row['test_accuracy']:.2f} % "
        f"({row['test_correct']} of {row['test_examples']}), loss {row['test_loss']:.4f}; {recipe}"
    )


def interval_of(row: Mapping[Any, Any], name: str = "test") -> Interval:
    """Wilson's, of a row's accuracy on a test."""
    return wilson(int(row[f"{name}_correct"]), int(row[f"{name}_examples"]))


def percent(interval: Interval) -> str:
    """An interval of accuracies for people."""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f} %"


def results_markdown(run: RunDir, spec: JobSpec, verdict: Verdict, review: SearchReview | None) -> str:
    """The verdict, what was tested, and the best trials; all of them are in results.csv and report.html."""
    table = results_table(run)
    parts = [f"# {cell('name', spec.name)}", "", f"**{verdict.sentence}**", ""]
    for warning in review.warnings if review else []:
        parts += [f"> ⚠ {cell('text', warning.text)}", ""]
        if warning.patch:
            parts += ["```yaml", warning.patch.rstrip(), "```", ""]
    retrained = table[table["stage"] == "retrain"]
    if len(retrained):
        parts += ["## Retrained models", "", _markdown(retrained, RETRAINED_COLUMNS), ""]
    confirmed = table[table["stage"] == "confirm"]
    if len(confirmed):
        parts += [
            "## The best trials on fresh seeds",
            "",
            _markdown(confirmed, ["id", "seed", *TRIAL_COLUMNS[1:-1]]),
            "",
        ]
    trials = _best_first(table[table["stage"] == "search"], spec)
    if len(trials):
        shown = trials.head(MOST_TRIALS_SHOWN)
        heading = "Trials, best first"
        if len(trials) > len(shown):
            heading += f" ({len(shown)} of {len(trials)}; all of them are in results.csv)"
        parts += [f"## {heading}", "", _markdown(shown, TRIAL_COLUMNS), ""]
    if review is not None:
        parts += ["## The search", "", *(f"- {cell('text', sentence)}" for sentence in review.sentences), ""]
    return "\n".join(parts)


def _best_first(trials: pd.DataFrame, spec: JobSpec) -> pd.DataFrame:
    """Complete ones before the others."""
    ascending = direction(spec.search) == "minimize"
    complete_first = trials["status"].map({"complete": 0}).fillna(1)
    return trials.assign(_rank=complete_first).sort_values(
        ["_rank", spec.search.objective], ascending=[True, ascending]
    )


def _markdown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    formatted = pd.DataFrame({name: [cell(name, value) for value in table[name]] for name in columns})
    return str(formatted.to_markdown(index=False, disable_numparse=True))
