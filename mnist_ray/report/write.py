"""A run's report: report.html, results.md, the model with its card, and the warnings for result.json.

Nothing but the record is read, and the same record gives the same bytes, on any machine.
"""

from dataclasses import asdict, replace

from mnist_ray import __version__
from mnist_ray.config import dump_spec
from mnist_ray.errors import CorruptFileError
from mnist_ray.record.event_log import REMEDY
from mnist_ray.record.outcome import outcome_of
from mnist_ray.record.paths import RunPaths
from mnist_ray.record.rundir import RunDir, num_exported
from mnist_ray.report import errors, illustrations, tables
from mnist_ray.report.definitions import definitions
from mnist_ray.report.formatting import minute
from mnist_ray.report.model_card import model_card
from mnist_ray.report.page import Page, render
from mnist_ray.report.protocol import commands, protocol, provenance
from mnist_ray.report.review import Review
from mnist_ray.report.summary import results_markdown
from mnist_ray.storage.files import StoragePath, write_atomic, write_json


def write_report(run: RunDir, to: StoragePath | None = None) -> Review:
    """Write report.html, results.md and model/ into the run's folder, or into another one.

    A result.json there that shows the same events gets the search's warnings.
    A record that lacks something leaves every file as it was. Raises SpecError, CorruptFileError, OSError.
    """
    review = Review.of(run)
    write_review(review, run.paths if to is None else RunPaths(to))
    return review


def write_review(review: Review, paths: RunPaths) -> None:
    """Write what `write_report` writes. Raises CorruptFileError before anything is written, OSError."""
    markdown = results_markdown(review.state, review.verdict, review.search, review.ensembles)
    contents = {paths.report: report_html(review), paths.results_markdown: markdown.encode()}
    if review.model is not None:
        training_id = review.model.training.id
        weights = review.run.weights(training_id)
        if weights is None:
            raise CorruptFileError(f"{review.run.paths.record}: {training_id} was tested and has no model: {REMEDY}")
        contents[paths.model_folder / "model.safetensors"] = weights
        contents[paths.model_folder / "README.md"] = model_card(review, review.model).encode()
    for path, content in contents.items():
        write_atomic(path, content)
    if num_exported(paths) == review.state.num_events:  # elsewhere nobody looks for result.json
        warnings = [warning.text for warning in review.search.warnings] if review.search else []
        write_json(paths.outcome, asdict(replace(outcome_of(review.run), warnings=warnings)))


def report_html(review: Review) -> bytes:
    """Return the page. Equal bytes for equal records."""
    state, spec, search = review.state, review.spec, review.search
    importance = [review.importances.sentence] if review.importances else []
    page = Page(
        name=spec.name,
        data_name=spec.data.name,
        began=minute(state.stage_events[0].at),
        ended=minute(state.tested.at) if state.tested else None,
        verdict=review.verdict,
        roles=tables.roles(review),
        role_figures=illustrations.roles(review),
        definitions=definitions(review),
        missing=missing_stages(review),
        warnings=search.warnings if search else [],
        models=tables.models(review),
        configurations=tables.configurations(review),
        second_tests={name: lines for name in spec.test.also if (lines := tables.second_test_lines(review, name))},
        divided=errors.divided(review),
        curves=illustrations.curves(review),
        key_findings=[*search.key_sentences, *importance] if search else [],
        candidates=tables.candidates(review),
        search_note=illustrations.search_note(review),
        other_findings=search.other_sentences if search else [],
        search_figures=illustrations.search_illustrations(review),
        trainings=tables.trainings(review),
        training_curves=tables.training_curves(review),
        errors=errors.errors(review),
        error_figures=illustrations.error_illustrations(review),
        costs=tables.costs(review),
        time_text=tables.time_text(review),
        time_figures=illustrations.time_illustrations(review),
        protocol=protocol(review),
        provenance=provenance(review),
        commands=commands(review),
        spec=dump_spec(spec),
        version=__version__,
        num_events=state.num_events,
    )
    return render(page)


def missing_stages(review: Review) -> list[str]:
    """Return what an unfinished run still lacks, in words."""
    state, spec = review.state, review.spec
    if state.tested:
        return []
    missing = []
    with_search = bool(state.search_started or state.search_ended)
    if not state.selected or with_search:
        if not state.search_ended:
            missing.append(f"the search: {state.num_ended('search')} of {spec.search.num_trials} trials have ended")
        if spec.final and not state.final_ended:
            missing.append("the final round of the best configurations and the recipe")
        if not state.selected:
            missing.append("the selection of a configuration")
    if spec.retrain and not state.retrained:
        planned = state.selected.retrainings if state.selected else ()
        num_ended = sum(state.has_ended(plan.id) for plan in planned)
        missing.append(f"the retraining: {num_ended} of {len(planned)} have ended" if planned else "the retraining")
    return [*missing, "the test's scores" if state.test_opened else "the test, which has not been opened"]
