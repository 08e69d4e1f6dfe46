"""A run's folder: what is where, and what is on record.

The record is a set of small files that are written once, each with its own hash, by the driver only:

    record/trainings/<id>/asked.json, epoch-0001.json, ..., ended.json
    record/stages/0001-<stage>.json, 0002-<stage>.json, ...

Everything else in the folder (tables, study, models' copies) is a view that can be made from it again.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mnist_ray.config import SpecError
from mnist_ray.files import read_sealed_json, write_atomic, write_sealed_json

Status = Literal["complete", "pruned", "stopped", "failed"]

TRAINING_ID = re.compile(r"[a-z]+-[a-z0-9-]+")


@dataclass
class Training:
    """One training as it is on record: a trial of the search, a retraining of the choice, or the baseline."""

    id: str
    stage: str  # "search" or "retrain"
    config: dict[str, Any]  # a TrainingConfig's values
    asked: dict[str, Any]  # everything known when it began, the two above among it
    history: list[dict[str, Any]] = field(default_factory=list)  # one row an epoch, in order
    ended: dict[str, Any] | None = None  # status, reason, where and how it ran

    @property
    def status(self) -> Status | None:
        return self.ended["status"] if self.ended else None

    @property
    def epochs_done(self) -> int:
        return len(self.history)


class RunDir:
    """The folder of one run. Methods that write raise OSError, and leave what was there before."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.spec = self.path / "spec.yaml"
        self.results_csv = self.path / "results.csv"
        self.results_parquet = self.path / "results.parquet"
        self.results_markdown = self.path / "results.md"
        self.history_parquet = self.path / "history.parquet"
        self.outcome = self.path / "result.json"
        self.best_spec = self.path / "best.yaml"
        self.study = self.path / "study.sqlite3"
        self.ray_state = self.path / "ray"  # what Ray itself writes; nothing is read from it
        self._record = self.path / "record"

    @property
    def exists(self) -> bool:
        return self._record.is_dir()

    def model(self, training_id: str) -> Path:
        return self.path / "models" / f"{training_id}.safetensors"

    def test_logits(self, training_id: str) -> Path:
        return self.path / "models" / f"{training_id}.test_logits.npy"

    def checkpoints(self, training_id: str) -> Path:
        return self.path / "checkpoints" / training_id

    def remove_checkpoints(self, training_id: str) -> None:
        """Once its outcome is on record, nothing goes on from them."""
        shutil.rmtree(self.checkpoints(training_id), ignore_errors=True)

    def write_training_log(self, training_id: str, ending: str) -> str:
        """A failed training's log: its config, its epochs, and how it ended. Returns its path below the run."""
        training = self.training(training_id)
        assert training is not None
        return self.write_log(
            training_id, "\n".join([f"{training_id}: {training.config}", *map(str, training.history), ending, ""])
        )

    def write_log(self, name: str, text: str) -> str:
        """Returns the log's path below the run."""
        path = self.path / "logs" / f"{name}.log"
        write_atomic(path, text.encode())
        return str(path.relative_to(self.path))

    # --- trainings

    def record_asked(self, training_id: str, stage: str, config: Mapping[str, Any], **known: Any) -> None:
        body = {"id": training_id, "stage": stage, "config": dict(config), "at": now(), **known}
        write_sealed_json(self._training(training_id) / "asked.json", body)

    def record_epoch(self, training_id: str, row: Mapping[str, Any]) -> None:
        path = self._training(training_id) / f"epoch-{row['epoch']:04d}.json"
        write_sealed_json(path, {**row, "at": now()})

    def record_ended(self, training_id: str, status: Status, reason: str | None, **facts: Any) -> None:
        body = {"status": status, "reason": reason, "at": now(), **facts}
        write_sealed_json(self._training(training_id) / "ended.json", body)

    def trainings(self, stage: str) -> list[Training]:
        """All of a stage that are on record, in the order of their ids."""
        folders = _in_order(path.parent for path in (self._record / "trainings").glob("*/asked.json"))
        found = (self.training(folder.name) for folder in folders)
        return [training for training in found if training is not None and training.stage == stage]

    def training(self, training_id: str) -> Training | None:
        """One training, or None if it was never asked for. Raises CorruptFileError."""
        folder = self._training(training_id)
        asked = _read_if_there(folder / "asked.json")
        if asked is None:
            return None
        history = [read_sealed_json(path) for path in _in_order(folder.glob("epoch-*.json"))]
        return Training(
            id=asked["id"],
            stage=asked["stage"],
            config=asked["config"],
            asked=asked,
            history=history,
            ended=_read_if_there(folder / "ended.json"),
        )

    def _training(self, training_id: str) -> Path:
        assert TRAINING_ID.fullmatch(training_id), training_id
        return self._record / "trainings" / training_id

    # --- stages

    def record_stage(self, stage: str, **facts: Any) -> None:
        """Append to the log of stages; the latest entry of a stage counts."""
        number = len(list(self._stages())) + 1
        body = {"stage": stage, "at": now(), **facts}
        write_sealed_json(self._record / "stages" / f"{number:04d}-{stage}.json", body)

    def stage(self, stage: str) -> dict[str, Any] | None:
        """The latest entry of a stage, or None. Raises CorruptFileError."""
        paths = [path for path in self._stages() if path.stem.split("-", 1)[1] == stage]
        entry: dict[str, Any] | None = read_sealed_json(paths[-1]) if paths else None
        return entry

    def all_stages(self) -> list[dict[str, Any]]:
        """Every entry, oldest first."""
        return [read_sealed_json(path) for path in self._stages()]

    def _stages(self) -> Iterator[Path]:
        # Not the hidden leftovers of a process that was killed while it wrote: pathlib's * matches those too.
        yield from sorted((self._record / "stages").glob("[0-9]*-*.json"))


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """By number, beyond four digits too."""
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def _read_if_there(path: Path) -> Any:
    try:
        return read_sealed_json(path)
    except FileNotFoundError:
        return None


def runs_in(storage: Path) -> list[RunDir]:
    """The runs below a storage folder, newest first."""
    runs = [RunDir(path) for path in storage.iterdir()] if storage.is_dir() else []
    runs = [run for run in runs if run.exists]
    return sorted(runs, key=lambda run: run.path.stat().st_mtime, reverse=True)


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def find_run(name: str, storage: Path) -> RunDir:
    """A run by its name below `storage`, or by its folder. Raises SpecError that says which there are."""
    for path in (storage / name, Path(name)):
        if (run := RunDir(path)).exists:
            return run
    known = ", ".join(run.path.name for run in runs_in(storage)) or "none"
    raise SpecError(f"there is no run {name!r} in {storage.absolute()} (there: {known}): give a name or a folder")
