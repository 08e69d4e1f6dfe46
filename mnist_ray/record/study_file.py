"""The study as a SQLite file that Optuna and its dashboard open.

Optuna makes the file and the empty study. The trials are inserted a table at a time: through Optuna's own storage each
value is looked up before it is written: tens of milliseconds a trial. The tables are those of Optuna's database schema,
which its migrations keep; tests/record/test_study.py compares every trial with what Optuna itself writes.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from mnist_ray.config import JobSpec
from mnist_ray.record.state import Training
from mnist_ray.record.study import frozen_trials, new_study
from mnist_ray.storage.files import StoragePath, replace_atomic

Rows = list[dict[str, Any]]


def write_study(path: StoragePath, spec: JobSpec, trainings: Sequence[Training]) -> None:
    """Write the study of a search. Raises OSError."""
    trials = frozen_trials(spec, trainings)
    replace_atomic(path, lambda beside: _write(beside, spec, trials))


def _write(path: Path, spec: JobSpec, trials: Sequence[FrozenTrial]) -> None:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA synchronous = OFF")  # the whole file is flushed before it gets its name
        return connection

    # Without the path in the address, where "?" and "%" would mean something.
    storage = optuna.storages.RDBStorage("sqlite:///study.sqlite3", engine_kwargs={"creator": connect})
    try:
        study = new_study(spec.search, storage=storage, study_name=spec.name)
        tables = sqlalchemy.MetaData()
        tables.reflect(storage.engine)
        with storage.engine.begin() as transaction:
            for name, rows in _rows(storage.get_study_id_from_name(study.study_name), trials).items():
                if rows:
                    transaction.execute(tables.tables[name].insert(), rows)
    finally:
        storage.engine.dispose()


def _rows(study_id: int, trials: Iterable[FrozenTrial]) -> dict[str, Rows]:
    """Return the rows of each table; a trial's id is its number, counted from 1."""
    rows: dict[str, Rows] = {
        name: []
        for name in (
            "trials",
            "trial_values",
            "trial_params",
            "trial_user_attributes",
            "trial_intermediate_values",
        )
    }
    for number, trial in enumerate(trials):
        of_trial = {"trial_id": number + 1}
        rows["trials"].append(
            {
                **of_trial,
                "number": number,
                "study_id": study_id,
                "state": trial.state.name,
                "datetime_start": _in_utc(trial.datetime_start),
                "datetime_complete": _in_utc(trial.datetime_complete),
            }
        )
        if trial.value is not None:
            rows["trial_values"].append({**of_trial, "objective": 0, "value": trial.value, "value_type": "FINITE"})
        rows["trial_params"] += [
            {
                **of_trial,
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ]
        rows["trial_user_attributes"] += [
            {**of_trial, "key": key, "value_json": json.dumps(value)} for key, value in trial.user_attrs.items()
        ]
        rows["trial_intermediate_values"] += [
            {**of_trial, "step": step, "intermediate_value": value, "intermediate_value_type": "FINITE"}
            for step, value in trial.intermediate_values.items()
        ]
    return rows


def _in_utc(local: datetime | None) -> datetime | None:
    """Return one of Optuna's times, which are local and without a zone, in UTC, as the file has them."""
    return local and local.astimezone(UTC).replace(tzinfo=None)
