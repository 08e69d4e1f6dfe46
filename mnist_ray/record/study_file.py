"""The study as a SQLite file that Optuna and its dashboard open.

Optuna makes the file and the empty study. The trials are inserted a table at a time: through Optuna's own storage each
value is looked up before it is written: tens of milliseconds a trial. The tables are those of Optuna's database schema,
which its migrations keep; tests/record/test_study.py compares every trial with what Optuna itself writes.
"""

import contextlib
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
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

BUSY_S = 5.0  # for another program that reads the file; each of its reads takes milliseconds

Rows = list[dict[str, Any]]


class StudyFile:
    """A study in a file, whose trials are added and changed while other programs read them. Closed by `close`."""

    def __init__(self, path: Path, spec: JobSpec) -> None:
        """Open the study of a spec's search; make it where the file has none."""

        self._spec = spec
        # Without the path in the address, where "?" and "%" would mean something.
        self._storage = optuna.storages.RDBStorage(
            "sqlite:///study.sqlite3", engine_kwargs={"creator": lambda: _connect(path)}
        )
        study = new_study(spec.search, storage=self._storage, study_name=spec.name, load_if_exists=True)
        self._study_id = self._storage.get_study_id_from_name(study.study_name)
        self._tables = sqlalchemy.MetaData()
        self._tables.reflect(self._storage.engine)

    def put(self, trainings: Sequence[Training]) -> None:
        """Write these trials, each in the place of what the file has of it."""
        rows = _rows(self._study_id, trainings, frozen_trials(self._spec, trainings))
        with self._storage.engine.begin() as transaction:
            for name, of_table in rows.items():
                table = self._tables.tables[name]
                # The trials are new in most files, and their rows then removed at no cost.
                old = table.delete().where(table.c.trial_id == sqlalchemy.bindparam("old"))
                if trainings:
                    transaction.execute(old, [{"old": row["trial_id"]} for row in rows["trials"]])
                if of_table:
                    transaction.execute(table.insert(), of_table)

    def close(self) -> None:
        """Let go of the file."""
        self._storage.engine.dispose()


def write_study(path: StoragePath, spec: JobSpec, trainings: Sequence[Training], in_place: bool = False) -> None:
    """Write the study of a search. Raises OSError.

    in_place: a file on a disk that is there gets the new content and stays the same file, so that a program that has
    it open shows that content; a new file would be unknown to it.
    """

    def write(beside: Path) -> None:
        with contextlib.closing(StudyFile(beside, spec)) as study:
            study.put(trainings)

    if not (in_place and isinstance(path, Path) and path.is_file() and _overwrite(path, write)):
        replace_atomic(path, write)


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file without a journal beside it: a study that is torn by a power cut is made again from the record."""
    connection = sqlite3.connect(path, timeout=BUSY_S)
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _overwrite(path: Path, write: Callable[[Path], object]) -> bool:
    """Give a file the content that `write` writes, in one transaction; return whether that was possible."""
    if any(path.with_name(path.name + end).exists() for end in ("-journal", "-wal")):
        return False  # SQLite would first do what that file says, whoever wrote it
    try:
        with tempfile.TemporaryDirectory(prefix="mnist-ray-") as folder:
            beside = Path(folder) / path.name
            write(beside)
            deadline = time.monotonic() + BUSY_S

            def check_time(result: int, num_left: int, num_pages: int) -> None:
                if num_left and time.monotonic() > deadline:
                    raise TimeoutError

            with contextlib.closing(_connect(beside)) as new, contextlib.closing(_connect(path)) as old:
                new.backup(old, progress=check_time)
        return True
    except (sqlite3.Error, TimeoutError):  # no database, or one that another program does not let go of
        return False


def _rows(study_id: int, trainings: Sequence[Training], trials: Iterable[FrozenTrial]) -> dict[str, Rows]:
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
    for training, trial in zip(trainings, trials, strict=True):
        assert training.number is not None, training.id
        number = training.number
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
