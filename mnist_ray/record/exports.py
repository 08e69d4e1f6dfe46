"""What people and other programs open in a run's folder: made from the record, whenever it is wanted."""

from mnist_ray.config import dump_spec, parse_spec
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.study import write_study
from mnist_ray.record.tables import (
    STAGES,
    best_spec,
    history_table,
    outcome_of,
    read_outcome,
    results_csv,
    results_table,
)
from mnist_ray.storage.files import StoragePath, exists, read, replace_atomic, write_atomic, write_json


def write_views(run: RunDir) -> None:
    """Make every table and view again from what is published. Raises OSError, CorruptFileError.

    An owner that was replaced while it was in here makes them once more, so that they show what its successor
    published.
    """
    num_shown = run.num_events
    _write_all(run)
    if run.num_events != num_shown:
        _write_all(run)


def views_are_current(run: RunDir) -> bool:
    """Whether the views are there and show everything that is published."""
    tables = (run.results_csv, run.results_parquet, run.history_parquet, run.study, run.spec)
    try:
        return all(map(exists, tables)) and bool(read_outcome(run)["num_events"] == run.num_events)
    except (OSError, ValueError, KeyError):
        return False


def _write_all(run: RunDir) -> None:
    started = run.stage("started")
    if started is None:
        return
    spec = parse_spec(started["spec"], str(run.path))
    write_atomic(run.spec, dump_spec(spec).encode())
    _write_tables(run)
    write_study(run.study, spec.name, spec.search, run.trainings("search"))
    chosen = run.stage("chosen")
    if chosen:
        write_atomic(run.best_spec, dump_spec(best_spec(spec, chosen["hyperparameters"])).encode())
    _write_models(run)
    _write_logs(run)
    write_json(run.outcome, outcome_of(run, spec))  # the last one, so that it says that all are there


def _write_tables(run: RunDir) -> None:
    table, history = results_table(run), history_table(run)
    write_atomic(run.results_csv, results_csv(table).encode())
    replace_atomic(run.results_parquet, table.to_parquet)
    replace_atomic(run.history_parquet, history.to_parquet)


def _write_models(run: RunDir) -> None:
    for training in run.trainings("retrain"):
        content = run.model_content(training.id)
        if content is not None:
            _write_once(run.model(training.id), content, "model-view")
    for training_id, score in (run.stage("tested") or {"scores": {}})["scores"].items():
        _write_once(run.test_logits(training_id), run.blob(score["test_logits"]), "logits-view")


def _write_once(path: StoragePath, content: bytes, point: str) -> None:
    if not exists(path) or read(path) != content:
        write_atomic(path, content, point)


def _write_logs(run: RunDir) -> None:
    for stage in STAGES:
        for training in run.trainings(stage):
            if training.status == "failed":
                _write_once(run.training_log(training.id), _log_of(training).encode(), "log-view")
    failed = run.stage("retrain-failed")
    if failed:
        _write_once(run.retraining_log, failed["error"].encode(), "log-view")


def _log_of(training: Training) -> str:
    """A failed training's log: its config, its epochs, and how it ended."""
    ended = training.ended or {}
    parts = [f"{training.id}: {training.config}", *map(str, training.history), str(ended.get("reason")), ""]
    return "\n".join([*parts, str(ended.get("trace") or ""), ""])
