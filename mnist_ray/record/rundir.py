"""A run's folder, read: its state and its large contents. Only the run's owner writes (writer.py)."""

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path

from mnist_ray.config import check_storage
from mnist_ray.errors import CorruptFileError, SpecError
from mnist_ray.record.event_log import REMEDY, EventLog, Numbered
from mnist_ray.record.lease_file import read_lease
from mnist_ray.record.paths import RunPaths
from mnist_ray.record.state import RunState
from mnist_ray.storage.files import StoragePath, children, modified_at, read, sha256, storage_path

# Whose model answers a picture where no run is named, in this order; the digits' 8x8 pixels are like no picture of one.
FIRST_ASKED, LAST_ASKED = ("mnist", "qmnist", "images"), "digits"
LOOK_EVERY_S = 1.0  # between two reads of a store's log by one process, each of which takes hundredths of a second


class RunDir:
    """The folder of one run. `state` follows what the run's owner publishes.

    Everything that reads raises CorruptFileError and OSError.
    """

    def __init__(self, folder: StoragePath) -> None:
        self.paths = RunPaths(folder)
        self.log = EventLog(self.paths.record)
        self.lock = threading.RLock()  # over `log` and the state
        self._state = RunState()
        self._look_every_s = 0.0 if isinstance(folder, Path) else LOOK_EVERY_S
        self._looked_at = float("-inf")
        self.incoming: deque[Numbered] = deque()  # from this process's own writer
        self._has_writer = False

    def __str__(self) -> str:
        return str(self.paths.folder)

    @property
    def path(self) -> Path:
        return self.paths.folder

    @property
    def exists(self) -> bool:
        return self.log.exists

    @property
    def state(self) -> RunState:
        """The state after every event that is published; from a store it may be LOOK_EVERY_S old.

        In the owner's process the events come from its writer. Only one thread may use the state.
        """
        if self._has_writer:
            while self.incoming:
                self._state.apply(self.incoming.popleft())
        elif time.monotonic() - self._looked_at >= self._look_every_s:
            self.catch_up()
        return self._state

    def catch_up(self) -> None:
        """Read what was published since the last look."""
        with self.lock:
            is_first = self.log.num_events == 0
            try:
                if is_first:
                    self.paths.check_links()
                self._apply_new()
                if is_first and self._state.sessions:
                    self._check_end()
            except BaseException:
                # Half of what was read may have been applied; the next look begins again, and fails in the same way.
                self.log, self._state = EventLog(self.paths.record), RunState()
                raise
            self._looked_at = time.monotonic()

    def _apply_new(self) -> None:
        for numbered in self.log.read_new():
            self._state.apply(numbered)

    def follow_writer(self, published: list[Numbered]) -> None:
        """Take the state's further events from this process's own writer, beginning with `published`."""
        self._has_writer = True
        self.incoming.extend(published)

    def unfollow_writer(self) -> None:
        """Read the log again from here on."""
        self.state  # noqa: B018  # takes in the writer's last events
        self._has_writer = False

    @property
    def num_published(self) -> int:
        """The number of events that this object has read, without a look at the storage."""
        return self.log.num_events

    def _check_end(self) -> None:
        """Compare with the owner's lease and the exported files, which say how long the log was when they were written.

        The log alone cannot show that events are missing at its end. A copy of a run has no lease.
        """
        lease = read_lease(self.paths.lease(self._state.fencing_token))
        expected = max(lease.num_events if lease else 0, num_exported(self.paths))
        self._apply_new()  # what was published between reading the log and reading the lease
        if self.log.num_events < expected:
            raise CorruptFileError(
                f"{self.paths.record}: events {self.log.num_events + 1} to {expected} are missing: {REMEDY}"
            )

    # --- blobs

    def blob(self, name: str) -> bytes:
        """Return the content that has this SHA-256. Raises CorruptFileError if it is missing or damaged."""
        path = self.blob_path(name)
        try:
            content = read(path)
        except FileNotFoundError:
            raise CorruptFileError(f"{path} is missing: {REMEDY}") from None
        if sha256(content) != name:
            raise CorruptFileError(f"{path}: its content does not match its name: {REMEDY}")
        return content

    def blob_path(self, name: str) -> Path:
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise CorruptFileError(f"{self.paths.record}: {name!r} is not a SHA-256: {REMEDY}")
        return self.paths.record / "blobs" / name

    def weights(self, training_id: str) -> bytes | None:
        """Return a trained network as safetensors; None where there is none."""
        training = self.state.training(training_id)
        name = training and training.ended and training.ended.model
        if not name:
            return None
        from mnist_ray.record.arrays import check_weights  # imports numpy, which a list of runs does without

        content = self.blob(name)
        check_weights(content, str(self.blob_path(name)))
        return content


def num_exported(paths: RunPaths) -> int:
    """Return how many events the exported files show, as they say themselves; 0 where they do not. Raises OSError."""
    try:
        outcome = json.loads(read(paths.outcome))
    except (FileNotFoundError, ValueError, RecursionError):
        return 0
    shown = outcome.get("num_events") if isinstance(outcome, dict) else None
    return shown if isinstance(shown, int) else 0


def runs_in(storage: StoragePath) -> list[RunDir]:
    """Return the runs below a storage folder, newest first."""
    dated = []
    for path in children(storage):
        with contextlib.suppress(OSError):  # a folder that may not be looked into, or is being removed
            if (run := RunDir(path)).exists:
                dated.append((modified_at(path), run))
    return [run for _, run in sorted(dated, key=lambda each: each[0], reverse=True)]


def readable_runs(storage: StoragePath, on_damage: Callable[[str], object]) -> Iterator[RunDir]:
    """Yield the runs whose record can be read, newest first; `on_damage` gets a line about each other one."""
    for run in runs_in(storage):
        try:
            run.catch_up()
        except CorruptFileError as error:
            on_damage(str(error))
        except OSError as error:
            on_damage(f"{run} cannot be read: {error}")
        else:
            yield run


def find_run(name: str, storage: StoragePath) -> RunDir:
    """Return a run by its name below `storage`, or by its folder. Raises SpecError that lists the runs there."""
    check_storage(name)
    for path in (storage / name, storage_path(name)):
        if (run := RunDir(path)).exists:
            return run
    known = [run.path.name for run in runs_in(storage)]
    near = get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "give a run's name or its folder"
    there = ", ".join(known) or "none"
    raise SpecError(f"there is no run {name!r} in {storage.absolute()} (there: {there}): {remedy}")


def run_to_ask(storage: StoragePath, on_damage: Callable[[str], object]) -> RunDir:
    """Return the tested run below a storage folder whose model answers a picture of handwriting best.

    That is the newest one of the first data set in FIRST_ASKED that has any, then of any other set, then of LAST_ASKED.
    `on_damage` gets a line about each damaged run. Raises SpecError if there is none.
    """

    def place(run: RunDir) -> int:
        name = run.state.started.spec.data.name if run.state.started else LAST_ASKED
        return FIRST_ASKED.index(name) if name in FIRST_ASKED else len(FIRST_ASKED) + (name == LAST_ASKED)

    tested = [run for run in readable_runs(storage, on_damage) if run.state.tested]
    if not tested:
        raise SpecError(f"{storage.absolute()} holds no finished run: make one with 'mnist-ray run', or give --storage")
    return min(tested, key=place)
