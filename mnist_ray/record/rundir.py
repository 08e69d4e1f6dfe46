"""A run's folder: what is where, and what is on record.

The record is a log of events, written by the run's owner only (see log.py), and large things by their hash:

    record/000001.json, 000002.json, ...    who owns the run, trainings asked for, epochs, ends, stages
    record/blobs/<sha256>                   trained models, test logits

Everything else in the folder is disposable: checkpoints of trainings that have not ended, leases of owners, and
views (tables, study, copies of models and logs; see views.py) that can be made from the record again.
"""

import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from mnist_ray.config import check_storage
from mnist_ray.errors import CorruptFileError, SpecError, TakenOverError
from mnist_ray.record.event_log import REMEDY, EventLog
from mnist_ray.storage.files import (
    StoragePath,
    children,
    modified_at,
    read,
    read_sealed_json,
    remove_tree,
    sha256,
    storage_path,
    write_atomic,
)

Status = Literal["complete", "pruned", "stopped", "failed"]

TRAINING_ID = re.compile(r"[a-z]+-[a-z0-9-]+")

LOOK_EVERY_S = 1.0  # at what others published in a store, where each look takes some hundredths of a second

RECORD_FORMAT = 3  # moves when a release can no longer go on with the runs of the one before it


@dataclass
class Training:
    """One training on record: a trial, its confirmation on a fresh seed, a retraining of the choice or the recipe."""

    id: str
    stage: str  # "search", "confirm" or "retrain"
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


@dataclass
class Session:
    """What one owner did: from its first event to its last."""

    owner: dict[str, Any]
    searching_at: str | None = None
    last_search_at: str | None = None  # of the latest event of the search

    @property
    def searched_s(self) -> float:
        """Seconds of searching, up to the last event where the session was killed in it."""
        if self.searching_at is None or self.last_search_at is None:
            return 0.0
        began, ended = (datetime.fromisoformat(at) for at in (self.searching_at, self.last_search_at))
        return (ended - began).total_seconds()


class RunDir:
    """The folder of one run. Reading follows what its owner publishes; methods that write raise OSError,
    TakenOverError, and leave what was there before. All that read raise CorruptFileError.
    """

    def __init__(self, path: StoragePath) -> None:
        # In a store it is a UPath, which is joined and named like a Path; all else is done by files.py.
        self.path = cast(Path, path.absolute())
        self.spec = self.path / "spec.yaml"
        self.results_csv = self.path / "results.csv"
        self.results_parquet = self.path / "results.parquet"
        self.results_markdown = self.path / "results.md"
        self.report = self.path / "report.html"
        self.model_folder = self.path / "model"
        self.history_parquet = self.path / "history.parquet"
        self.outcome = self.path / "result.json"
        self.best_spec = self.path / "best.yaml"
        self.study = self.path / "study.sqlite3"
        self.ray_state = _disk_for(self.path) / "ray"  # what Ray itself writes; nothing is read from it
        self.retraining_log = self.path / "logs" / "retrain.log"
        self.leases = self.path / "leases"
        self.record = self.path / "record"
        self._log = EventLog(self.record)
        self._trainings: dict[str, Training] = {}
        self._stages: list[dict[str, Any]] = []
        self._sessions: list[Session] = []
        self._mine = 0  # the number of the event by which this process became the owner
        self._look_every_s = 0.0 if isinstance(path, Path) else LOOK_EVERY_S
        self._looked_at = float("-inf")

    @property
    def exists(self) -> bool:
        return self._log.exists

    def model(self, training_id: str) -> Path:
        """The copy for people; programs take `model_content`."""
        return self.path / "models" / f"{_checked(training_id)}.safetensors"

    def test_logits(self, training_id: str) -> Path:
        return self.path / "models" / f"{_checked(training_id)}.test_logits.npy"

    def training_log(self, training_id: str) -> Path:
        return self.path / "logs" / f"{_checked(training_id)}.log"

    def checkpoints(self, training_id: str) -> Path:
        """Below it each owner has a folder of its own (see `generation`)."""
        return self.path / "checkpoints" / _checked(training_id)

    def remove_checkpoints(self, training_id: str) -> None:
        """Once its outcome is on record, nothing goes on from them."""
        remove_tree(self.checkpoints(training_id))

    def remove_spent_checkpoints(self) -> None:
        """Those of trainings that have ended; a process that was killed may have left them."""
        for folder in children(self.path / "checkpoints"):
            training = self.training(folder.name)
            if training is None or training.status is not None:
                remove_tree(folder)

    # --- who owns it

    @property
    def owner(self) -> dict[str, Any] | None:
        """The event by which the latest owner took the run: event (its number), at, host, pid, version ..."""
        self._catch_up()
        return self._sessions[-1].owner if self._sessions else None

    @property
    def generation(self) -> int:
        """A number that is larger for each owner."""
        owner = self.owner
        return owner["event"] if owner else 0

    @property
    def first_event(self) -> Path:
        """A file that is there once somebody owned the run, and stays."""
        return self.record / "000001.json"

    @property
    def num_events(self) -> int:
        self._catch_up(at_once=True)
        return self._log.num_read

    @property
    def num_published(self) -> int:
        """As many events as this object knows of, without a look at the disk; safe to ask from another thread."""
        return self._log.num_read

    def events(self) -> list[dict[str, Any]]:
        """Everything that is published, oldest first, read from the disk again."""
        return EventLog(self.record).read_new()

    def lease(self, generation: int) -> Path:
        return self.leases / f"{generation:06d}.json"

    def take(self, facts: Mapping[str, Any]) -> int:
        """Become the owner, if nothing was published since this object last looked; else raises TakenOverError.

        Returns the owner's generation.
        """
        self._add("owner", {"at": now(), "format": RECORD_FORMAT, **facts})
        self._mine = self._log.num_read
        return self._mine

    def was_taken_over(self) -> bool:
        """Whether the next event on disk is somebody else's; safe to ask from another thread."""
        if self._mine and self._sessions[-1].owner["event"] != self._mine:
            return True
        try:
            event = self._log.peek()
        except CorruptFileError:  # read while the owner's own thread moved on
            return False
        return event is not None and event["kind"] == "owner"

    # --- trainings

    def record_asked(self, training_id: str, stage: str, config: Mapping[str, Any], **known: Any) -> None:
        self._publish("asked", id=_checked(training_id), training_stage=stage, config=dict(config), **known)

    def record_epoch(self, training_id: str, row: Mapping[str, Any]) -> None:
        """A row that is on record already, because it was read from a checkpoint, is not recorded again."""
        self._catch_up()
        history = self._trainings[training_id].history
        if dict(row) not in [_without_time(known) for known in history if known["epoch"] == row["epoch"]]:
            self._publish("epoch", id=training_id, row=dict(row))

    def record_ended(self, training_id: str, status: Status, reason: str | None, **facts: Any) -> None:
        """facts: `trace`, the text for its log, and `model`, its weights' blob, among them."""
        self._publish("ended", id=training_id, status=status, reason=reason, **facts)

    def trainings(self, stage: str) -> list[Training]:
        """All of a stage that are on record, in the order of their ids."""
        self._catch_up()
        found = [training for training in self._trainings.values() if training.stage == stage]
        # By number, beyond four digits too.
        return [_copy(training) for training in sorted(found, key=lambda each: (len(each.id), each.id))]

    def training(self, training_id: str) -> Training | None:
        """One training, or None if it was never asked for."""
        self._catch_up()
        known = self._trainings.get(training_id)
        return known and _copy(known)

    # --- stages

    def record_stage(self, stage: str, **facts: Any) -> None:
        """Append to the log of stages; the latest entry of a stage counts."""
        self._publish("stage", stage=stage, **facts)

    def stage(self, stage: str) -> dict[str, Any] | None:
        """The latest entry of a stage, or None."""
        return next((entry for entry in reversed(self.all_stages()) if entry["stage"] == stage), None)

    def all_stages(self) -> list[dict[str, Any]]:
        """Every entry, oldest first."""
        self._catch_up()
        return list(self._stages)

    def searched_s(self) -> float:
        """Seconds of searching in all sessions."""
        self._catch_up()
        return sum(session.searched_s for session in self._sessions)

    # --- blobs

    def put_blob(self, content: bytes, point: str) -> str:
        """Keep `content` under its SHA-256, which is returned."""
        name = sha256(content)
        write_atomic(self._blob(name), content, point)
        return name

    def blob(self, name: str) -> bytes:
        path = self._blob(name)
        try:
            content = read(path)
        except FileNotFoundError:
            raise CorruptFileError(f"{path} is missing: {REMEDY}") from None
        if sha256(content) != name:
            raise CorruptFileError(f"{path}: its content does not match its name: {REMEDY}")
        return content

    def model_content(self, training_id: str) -> bytes | None:
        """A trained network as safetensors; None where there is none."""
        training = self.training(training_id)
        name = training and training.ended and training.ended.get("model")
        return self.blob(name) if name else None

    def _blob(self, name: str) -> Path:
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise CorruptFileError(f"{self.record}: {name!r} is no SHA-256: {REMEDY}")
        return self.record / "blobs" / name

    # --- the log

    def _publish(self, kind: str, **facts: Any) -> None:
        self._catch_up()
        if self._sessions and self._sessions[-1].owner["event"] != self._mine:
            raise TakenOverError(f"{self.path} was taken over by {owner_line(self._sessions[-1].owner)}")
        self._add(kind, {"at": now(), **facts})

    def _add(self, kind: str, facts: dict[str, Any]) -> None:
        try:
            event = self._log.add(kind, facts)
        except (FileExistsError, FileNotFoundError):  # a successor removes what was half written, too
            if not self.was_taken_over() and self._log.peek() is None:
                raise
            raise TakenOverError(f"{self.path} was taken over by another process") from None
        self._apply(event)

    def _catch_up(self, at_once: bool = False) -> None:
        """Read what was published since; in a store at most once in LOOK_EVERY_S, unless it is to be `at_once`."""
        if not at_once and time.monotonic() - self._looked_at < self._look_every_s:
            return
        self._looked_at = time.monotonic()
        is_first = self._log.num_read == 0
        for event in self._log.read_new():
            self._apply(event)
        if is_first and self._sessions:
            self._check_end()

    def _check_end(self) -> None:
        """The owner's lease knows how long the log was, so that events missing at its end are noticed too."""
        try:
            expected = read_sealed_json(self.lease(self._sessions[-1].owner["event"]))["num_events"]
        except (OSError, CorruptFileError):
            return
        for event in self._log.read_new():  # what was published between reading the log and reading the lease
            self._apply(event)
        if self._log.num_read < expected:
            raise CorruptFileError(
                f"{self.record}: events {self._log.num_read + 1} to {expected} are missing: {REMEDY}"
            )

    def _apply(self, event: dict[str, Any]) -> None:
        """Events of kinds that this release does not know are passed over: its tables can still be made."""
        match event["kind"]:
            case "owner":
                self._sessions.append(Session(event))
            case "asked":
                self._apply_asked(event)
            case "epoch":
                history = self._trainings[event["id"]].history
                # A training that went on from an earlier epoch reports other rows from there on.
                while history and history[-1]["epoch"] >= event["row"]["epoch"]:
                    history.pop()
                history.append({**event["row"], "at": event["at"]})
            case "ended":
                self._trainings[event["id"]].ended = {key: event[key] for key in _facts(event) if key != "id"}
            case "stage":
                self._stages.append(_facts(event))
        self._count_search_time(event)

    def _apply_asked(self, event: dict[str, Any]) -> None:
        training_id = event["id"]
        _checked(training_id)
        asked = _facts(event)
        asked["stage"] = asked.pop("training_stage")
        self._trainings[training_id] = Training(training_id, asked["stage"], asked["config"], asked)

    def _count_search_time(self, event: dict[str, Any]) -> None:
        if not self._sessions or "at" not in event:
            return
        session = self._sessions[-1]
        if event.get("stage") == "searching":
            session.searching_at = event["at"]
        if self._stages and self._stages[-1]["stage"] in ("searching", "searched"):
            session.last_search_at = event["at"]


def _disk_for(path: StoragePath) -> Path:
    """The run's own folder, or where that is in a store one of this process."""
    return path if isinstance(path, Path) else Path(tempfile.gettempdir(), f"mnist-ray-{os.getpid()}")


def _checked(training_id: str) -> str:
    """A training's name, which becomes part of a path. Raises CorruptFileError for one that could lead elsewhere."""
    if not TRAINING_ID.fullmatch(training_id):
        raise CorruptFileError(f"the record names a training {training_id!r}, which is no name of one: {REMEDY}")
    return training_id


def _facts(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("event", "previous", "kind")}


def _without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "at"}


def _copy(training: Training) -> Training:
    return replace(training, history=list(training.history))


def owner_line(owner: Mapping[str, Any]) -> str:
    """For people: where the owner runs, and since when."""
    return f"process {owner['pid']} on host {owner['host']}, which has it since {owner['at']}"


def runs_in(storage: StoragePath) -> list[RunDir]:
    """The runs below a storage folder, newest first."""
    runs = [RunDir(path) for path in children(storage)]
    runs = [run for run in runs if run.exists]
    return sorted(runs, key=lambda run: modified_at(run.path), reverse=True)


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def find_run(name: str, storage: StoragePath) -> RunDir:
    """A run by its name below `storage`, or by its folder. Raises SpecError that says which there are."""
    check_storage(name)
    for path in (storage / name, storage_path(name)):
        if (run := RunDir(path)).exists:
            return run
    known = ", ".join(run.path.name for run in runs_in(storage)) or "none"
    raise SpecError(f"there is no run {name!r} in {storage.absolute()} (there: {known}): give a name or a folder")
