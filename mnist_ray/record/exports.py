"""The files that people and other programs open in a run's folder: made from the record, whenever they are wanted."""

import json
from dataclasses import asdict
from pathlib import Path

from mnist_ray.config import Hyperparameters, JobSpec, dump_spec
from mnist_ray.record.outcome import outcome_of
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState
from mnist_ray.record.study import write_study
from mnist_ray.record.tables import STAGES, history_table, results_csv, results_table
from mnist_ray.storage.files import exists, read, replace_atomic, write_atomic, write_json


def write_exports(folder: Path) -> None:
    """Make every exported file again from what is published. Raises OSError, CorruptFileError.

    A run that got further meanwhile, because this process was replaced as its owner, is exported once more.
    """
    num_shown = _write_all(RunDir(folder))
    run = RunDir(folder)
    if run.state.num_events != num_shown:
        _write_all(run)


def exports_are_current(run: RunDir) -> bool:
    """Report whether the exported files are there and show everything that is published."""
    paths = run.paths
    tables = (paths.results_csv, paths.results_parquet, paths.history_parquet, paths.study, paths.spec)
    try:
        return all(map(exists, tables)) and bool(json.loads(read(paths.outcome))["num_events"] == run.state.num_events)
    except (OSError, ValueError, KeyError):
        return False


def _write_all(run: RunDir) -> int:
    """Return the number of events that the files show."""
    state, paths = run.state, run.paths
    if state.started is None:
        return state.num_events
    spec = state.started.spec
    write_atomic(paths.spec, dump_spec(spec).encode())
    table, history = results_table(state), history_table(state)
    write_atomic(paths.results_csv, results_csv(table).encode())
    replace_atomic(paths.results_parquet, table.to_parquet)
    replace_atomic(paths.history_parquet, history.to_parquet)
    write_study(paths.study, spec, state.trainings("search"))
    if state.selected:
        write_atomic(paths.selected_spec, dump_spec(selected_spec(spec, state.selected.hyperparameters)).encode())
    _write_models(run, state)
    _write_logs(run, state)
    write_json(paths.outcome, asdict(outcome_of(run)))  # the last one, so that it says that all are there
    return state.num_events


def _write_models(run: RunDir, state: RunState) -> None:
    for training in state.trainings("retrain"):
        if training.ended and training.ended.model:
            _write_once(run.paths.model(training.id), run.blob(training.ended.model), "model-view")
    for training_id, tests in (state.tested.scores if state.tested else {}).items():
        _write_once(run.paths.test_logits(training_id), run.blob(tests["test"].logits), "logits-view")


def _write_once(path: Path, content: bytes, failpoint: str) -> None:
    if not exists(path) or read(path) != content:
        write_atomic(path, content, failpoint)


def _write_logs(run: RunDir, state: RunState) -> None:
    """Write each failed training's log: its config, its epochs, and how it ended."""
    for stage in STAGES:
        for training in state.trainings(stage):
            if training.status == "failed":
                epochs = [str(metrics.columns()) for metrics in training.history]
                trace = (training.ended and training.ended.trace) or ""
                lines = [f"{training.id}: {training.config.model_dump()}", *epochs, str(training.reason), "", trace, ""]
                _write_once(run.paths.training_log(training.id), "\n".join(lines).encode(), "log-view")
    if state.retraining_failed:
        _write_once(run.paths.retraining_log, state.retraining_failed.error.encode(), "log-view")


def selected_spec(spec: JobSpec, hyperparameters: Hyperparameters) -> JobSpec:
    """Return a spec that trains the selected configuration again (`mnist-ray train best.yaml`)."""
    content = spec.model_dump()
    for part in ("recipe", "training"):
        content[part] = {name: getattr(hyperparameters, name) for name in content[part]}
    content["retrain"] |= {"baseline": False, "baseline_from": None}
    content["name"] = f"{spec.name[:59]}-best"
    return JobSpec.model_validate(content)
