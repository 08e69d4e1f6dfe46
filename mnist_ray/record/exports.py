"""The files that people and other programs open in a run's folder: made from the record, whenever they are wanted."""

from dataclasses import asdict
from pathlib import Path

from mnist_ray.config import Hyperparameters, JobSpec, dump_spec
from mnist_ray.record.outcome import outcome_of
from mnist_ray.record.paths import RunPaths
from mnist_ray.record.predictions import predictions
from mnist_ray.record.rundir import RunDir, num_exported
from mnist_ray.record.state import RunState
from mnist_ray.record.study_file import write_study
from mnist_ray.record.tables import STAGES, history_table, results_csv, results_table
from mnist_ray.storage.files import StoragePath, exists, read, replace_atomic, write_atomic, write_json


def write_exports(folder: StoragePath, to: StoragePath | None = None) -> None:
    """Make every exported file again from what is published, in the run's folder or in another one.

    A run that got further meanwhile, because this process was replaced as its owner, is exported once more. A record
    that cannot be read or lacks something leaves every file as it was. Raises OSError, CorruptFileError.
    """
    run = RunDir(folder)
    paths = run.paths if to is None else RunPaths(to)
    paths.check_links()
    num_shown = _write_all(run, paths)
    run = RunDir(folder)
    if run.state.num_events != num_shown:
        _write_all(run, paths)


def exports_are_current(run: RunDir) -> bool:
    """Report whether the exported files are there and show everything that is published. Raises CorruptFileError."""
    paths, num_events = run.paths, run.state.num_events
    tables = (paths.results_csv, paths.results_parquet, paths.history_parquet, paths.study, paths.spec)
    return all(map(exists, tables)) and num_exported(paths) == num_events


def _write_all(run: RunDir, paths: RunPaths) -> int:
    """Read everything first, then write. Return the number of events that the files show."""
    state = run.state
    if state.started is None:
        return state.num_events
    spec = state.started.spec
    copies = _models(run, paths) | _logs(state, paths)
    outcome = asdict(outcome_of(run))
    table, history = results_table(state), history_table(state)
    write_atomic(paths.spec, dump_spec(spec).encode())
    write_atomic(paths.results_csv, results_csv(table).encode())
    replace_atomic(paths.results_parquet, table.to_parquet)
    replace_atomic(paths.history_parquet, history.to_parquet)
    write_study(paths.study, spec, state.trainings("search"), in_place="optuna" in spec.log_to)
    if state.selected:
        write_atomic(paths.selected_spec, dump_spec(selected_spec(spec, state.selected.hyperparameters)).encode())
    for path, content in copies.items():
        if not exists(path) or read(path) != content:
            write_atomic(path, content, f"{path.parent.name}-view")
    write_json(paths.outcome, outcome)  # the last one, so that it says that all are there
    return state.num_events


def _models(run: RunDir, paths: RunPaths) -> dict[Path, bytes]:
    """Return the copies of the retrained models and of their test logits. Raises CorruptFileError."""
    state = run.state
    found = {}
    for training in [*state.trainings("final"), *state.trainings("retrain")]:
        if (weights := run.weights(training.id)) is not None:
            found[paths.model(training.id)] = weights
    for training_id, tests in (state.tested.scores if state.tested else {}).items():
        for test, scored in tests.items():
            predictions(run, training_id, test)  # so that a damaged one is named, whichever it is
            if test == "test":
                found[paths.test_logits(training_id)] = run.blob(scored.logits)
    return found


def _logs(state: RunState, paths: RunPaths) -> dict[Path, bytes]:
    """Return each failed training's log: its config, its epochs, and how it ended."""
    found = {}
    for stage in STAGES:
        for training in state.trainings(stage):
            if training.status == "failed":
                epochs = [str(metrics.columns()) for metrics in training.history]
                trace = (training.ended and training.ended.trace) or ""
                lines = [f"{training.id}: {training.config.model_dump()}", *epochs, str(training.reason), "", trace, ""]
                found[paths.training_log(training.id)] = "\n".join(lines).encode()
    if state.retraining_failed:
        found[paths.retraining_log] = state.retraining_failed.error.encode()
    return found


def selected_spec(spec: JobSpec, hyperparameters: Hyperparameters) -> JobSpec:
    """Return a spec that trains the selected configuration again (`mnist-ray train best.yaml`)."""
    content = spec.model_dump()
    for part in ("recipe", "training"):
        content[part] = {name: getattr(hyperparameters, name) for name in content[part]}
    kept = content["retrain"] or {"num_epochs": spec.final_epochs}
    content["retrain"] = kept | {"baseline": False, "baseline_from": None}
    content["name"] = f"{spec.name[:59]}-best"
    return JobSpec.model_validate(content)
