"""The outcome of a run: in a few lines for a terminal, and in a page of Markdown for a pull request."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mnist_ray.metrics import Score
from mnist_ray.record.judgement import Ensemble
from mnist_ray.record.models import RetrainedModel, retrained_models
from mnist_ray.record.state import RunState
from mnist_ray.record.study import direction
from mnist_ray.record.tables import STAGES, cell, results_table
from mnist_ray.report.analysis.search_review import SearchReview
from mnist_ray.report.analysis.verdict import Verdict
from mnist_ray.report.formatting import (
    HYPERPARAMETERS,
    columns_in_use,
    hyperparameters_in_words,
    percent,
    without_unused_parts,
)

RETRAINED_COLUMNS = [
    "role", "status", *HYPERPARAMETERS, "seed", "epochs_done", "test_accuracy", "test_correct", "test_loss",
    "train_loss", "elapsed_s", "workers",
]  # fmt: skip
FINAL_COLUMNS = [
    "id", "seed", "status", *HYPERPARAMETERS, "epochs_done", "val_loss", "val_accuracy", "elapsed_s",
]  # fmt: skip
TRIAL_COLUMNS = ["id", "status", *HYPERPARAMETERS, "epochs_done", "val_loss", "val_accuracy", "elapsed_s", "reason"]
MOST_TRIALS_SHOWN = 50


def summary_lines(
    state: RunState, verdict: Verdict, search: SearchReview | None, ensembles: Sequence[Ensemble] = ()
) -> list[str]:
    """Return the trials' counts, the retrained models and ensembles, warnings and, after a search, the verdict."""
    models = [_model_line(model) for model in retrained_models(state)]
    models += [
        f"{each.label} of seeds {', '.join(map(str, each.seeds))}: {_score_text(each.predictions.score)}"
        for each in ensembles
    ]
    if search is None:
        return models
    counts = ", ".join(f"{count} {status}" for status, count in search.spending.counts.items())
    return [
        f"{search.spending.num_trials} trials: {counts}",
        *models,
        *(f"warning: {warning.text}" for warning in search.warnings),
        f"verdict: {verdict.sentence}",
    ]


def _model_line(model: RetrainedModel) -> str:
    config, score = model.training.config, model.scores.get("test")
    result: str = model.training.status or "running"
    if score is not None:
        result = _score_text(score)
    return f"{model.side} (seed {config.seed}): {result}; {hyperparameters_in_words(config)}"


def _score_text(score: Score) -> str:
    return f"test {percent(score.accuracy)} ({score.num_correct} of {score.num_examples}), loss {score.loss:.4f}"


def results_markdown(
    state: RunState, verdict: Verdict, search: SearchReview | None, ensembles: Sequence[Ensemble] = ()
) -> str:
    """Return the verdict, the retrained models with their ensembles, and the best trials of a run that has started.

    All trials are in results.csv and report.html.
    """
    assert state.started is not None
    spec, table = state.started.spec, without_unused_parts(results_table(state))
    parts = [f"# {cell('name', spec.name)}", "", f"**{verdict.sentence}**", ""]
    for warning in search.warnings if search else []:
        parts += [f"> ⚠ {cell('text', warning.text)}", ""]
        if warning.patch:
            parts += ["```yaml", warning.patch.rstrip(), "```", ""]
    finals, trials = (table[table["stage"] == stage] for stage in ("final", "search"))
    retrained = table[(table["stage"] == "retrain") | ~table["role"].isin(["trial", "finalist"])]
    shown_of = partial(columns_in_use, trainings=[each for stage in STAGES for each in state.trainings(stage)])
    of_ensembles = [
        {"role": each.label, "seed": ", ".join(map(str, each.seeds)), **each.predictions.score.columns("test")}
        for each in ensembles
    ]
    with_ensembles = [*retrained.to_dict("records"), *of_ensembles]
    parts += _section(
        "Retrained models" if spec.retrain else "Tested models",
        pd.DataFrame(with_ensembles),
        shown_of(RETRAINED_COLUMNS),
    )
    parts += _section("The final round", finals, shown_of(FINAL_COLUMNS))
    complete_first = trials.assign(_rank=trials["status"].map({"complete": 0}).fillna(1))
    is_ascending = [True, direction(spec.search) == "minimize"]
    shown = complete_first.sort_values(["_rank", spec.search.objective], ascending=is_ascending).head(MOST_TRIALS_SHOWN)
    of_all = f" ({len(shown)} of {len(trials)}; all of them are in results.csv)" if len(trials) > len(shown) else ""
    parts += _section(f"Trials, best first{of_all}", shown, shown_of(TRIAL_COLUMNS))
    if search is not None:
        parts += ["## The search", "", *(f"- {cell('text', sentence)}" for sentence in search.sentences), ""]
    return "\n".join(parts)


def _section(title: str, table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return a heading and a table; nothing without rows."""
    if table.empty:
        return []
    texts = pd.DataFrame({name: [cell(name, value) for value in table[name]] for name in columns})
    return [f"## {title}", "", str(texts.to_markdown(index=False, disable_numparse=True)), ""]
