"""The run's log of events: numbered files, each written once and sealed to the one before it.

Adding an event is one conditional step: the next number is given out by a hard link, which fails if the number is
taken. So of two processes that both believe to own a run, one adds the next event, and the other learns that it
has been replaced; whatever it was about to say is not published.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_ray.files import CorruptFileError, create_atomic, read_sealed_json, seal, sealed_json


class EventLog:
    """A reader of the log that knows how far it has read, and can add what comes next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_read = 0
        self._seal = ""  # of the last event read

    @property
    def exists(self) -> bool:
        return any(self._numbers())

    def read_new(self) -> list[dict[str, Any]]:
        """The events since the last call. Raises CorruptFileError for one that is damaged or missing."""
        highest = max(self._numbers(), default=0) if self.num_read == 0 else 0
        events = []
        while (event := self._read(self.num_read + 1)) is not None:
            self._advance(event)
            events.append(event)
        if self.num_read < highest:
            raise CorruptFileError(f"{self._path(self.num_read + 1)} is missing: {REMEDY}")
        return events

    def add(self, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Publish an event as the next one. Raises FileExistsError if that number is taken, OSError."""
        event = {"event": self.num_read + 1, "previous": self._seal, "kind": kind, **facts}
        create_atomic(self._path(event["event"]), sealed_json(event), f"event-{facts.get('stage', kind)}")
        self._advance(event)
        return event

    def peek(self) -> dict[str, Any] | None:
        """The next event, if somebody added one; it stays unread."""
        return self._read(self.num_read + 1)

    def _advance(self, event: dict[str, Any]) -> None:
        self._seal = seal(event)
        self.num_read = event["event"]

    def _read(self, number: int) -> dict[str, Any] | None:
        path = self._path(number)
        try:
            event: dict[str, Any] = read_sealed_json(path)
        except FileNotFoundError:
            return None
        except CorruptFileError as error:
            raise CorruptFileError(f"{error}: {REMEDY}") from None
        if (event["event"], event["previous"]) != (number, self._seal):
            raise CorruptFileError(f"{path} does not follow the event before it: {REMEDY}")
        return event

    def _numbers(self) -> Iterator[int]:
        return (int(path.stem) for path in self.folder.glob("[0-9]*.json") if path.stem.isdigit())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


REMEDY = "bring the file back from a copy of the run's folder, or start a new run (--name)"
