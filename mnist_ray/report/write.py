"""A run's record becomes its report: report.html, results.md and the model with its card.

Nothing but the record is read, and the same record gives the same bytes, on any machine.
"""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from mnist_ray import __version__
from mnist_ray.config import dump_spec
from mnist_ray.errors import CorruptFileError
from mnist_ray.record.event_log import REMEDY
from mnist_ray.record.rundir import RunDir
from mnist_ray.report import illustrations, tables
from mnist_ray.report.model_card import model_card
from mnist_ray.report.page import render
from mnist_ray.report.protocol import commands, minute, protocol, provenance
from mnist_ray.report.review import Review
from mnist_ray.report.summary import results_markdown
from mnist_ray.storage.files import write_atomic


def write_report(run: RunDir) -> Review:
    """Write report.html, results.md and model/ into the run's folder. Raises SpecError, CorruptFileError, OSError."""
    review = Review.of(run)
    write_atomic(run.report, report_html(review))
    markdown = results_markdown(run, review.spec, review.verdict, review.search)
    write_atomic(run.results_markdown, markdown.encode())
    if review.choice is not None:
        weights = run.model_content(review.choice)
        if weights is None:
            raise CorruptFileError(f"{run.record}: {review.choice} was tested and has no model: {REMEDY}")
        write_atomic(run.model_folder / "model.safetensors", weights)
        write_atomic(run.model_folder / "README.md", model_card(review).encode())
    return review


def report_html(review: Review) -> bytes:
    """The page. Equal bytes for equal records."""
    drawn: dict[str, go.Figure] = {}
    parts = {
        "curves": illustrations.curves(review, drawn),
        "search_figures": illustrations.search_figures(review, drawn),
        "error_figures": illustrations.error_figures(review, drawn),
        "time_figures": illustrations.time_figures(review, drawn),
    }
    context = {
        **_head(review),
        **parts,
        **tables.models(review),
        **tables.rows(review),
        **tables.errors(review),
        **tables.times(review),
        "search_sentences": _search_sentences(review),
        "protocol": protocol(review),
        "provenance": provenance(review),
        "commands": commands(review),
        "spec": dump_spec(review.spec),
        "version": __version__,
        "num_events": review.run.num_events,
    }
    context["contents"] = [(name, title) for name, title, is_there in _contents(context) if is_there]
    return render(context, drawn, tables.curve_data(review))


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    return [
        ("verdict", "Verdict", True),
        ("models", "Models", bool(context["models"])),
        ("curves", "Curves", bool(context["curves"])),
        ("search", "Search", bool(context["search_sentences"])),
        ("table", "All trainings", bool(context["rows"])),
        ("errors", "Errors", bool(context["error_figures"])),
        ("time", "Time", True),
        ("protocol", "Protocol", True),
        ("provenance", "Provenance", True),
        ("repeat", "Repeat it", True),
    ]


def _head(review: Review) -> dict[str, Any]:
    events = review.run.all_stages()
    tested = review.run.stage("tested")
    return {
        "name": review.spec.name,
        "data_name": review.spec.data.name,
        "began": minute(events[0]["at"]),
        "ended": tested and minute(tested["at"]),
        "verdict": review.verdict,
        "verdict_class": review.verdict.kind if review.verdict.kind in ("better", "worse") else "",
        "missing": _missing(review),
        "warnings": review.search.warnings if review.search else [],
    }


def _missing(review: Review) -> list[str]:
    """What an unfinished run still lacks, in words."""
    run, spec = review.run, review.spec
    if run.stage("tested"):
        return []
    missing = []
    with_search = bool(run.stage("searching") or run.stage("searched"))
    chosen = run.stage("chosen")
    if not chosen or with_search:
        ended = sum(trial.status is not None for trial in run.trainings("search"))
        if not run.stage("searched"):
            missing.append(f"the search: {ended} of {spec.search.num_trials} trials have ended")
        if spec.confirm and not run.stage("confirmed"):
            missing.append("the confirmation of the best configurations on fresh seeds")
        if not chosen:
            missing.append("the choice")
    if not run.stage("retrained"):
        planned = (chosen or {}).get("retrainings", [])
        done = sum(1 for plan in planned if (training := run.training(plan["id"])) and training.status)
        missing.append(f"the retraining: {done} of {len(planned)} have ended" if planned else "the retraining")
    return [*missing, "the test, which is still sealed" if not run.stage("unsealed") else "the test's scores"]


def _search_sentences(review: Review) -> list[str]:
    sentences = review.search.sentences if review.search else []
    return [*sentences, *([review.importances.sentence] if review.importances else [])]
