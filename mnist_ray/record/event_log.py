"""The run's log of events: numbered files, each written once and sealed to the one before it.

Adding an event is one conditional step: the next number is given out by a hard link, or by a store that creates an
object only where there is none; both fail if the number is taken. So of two processes that both believe to own a run,
one adds the next event, and the other learns that it has been replaced; whatever it was about to say is not published.
"""

from collections.abc import Iterator
from typing import Any

from mnist_ray.errors import CorruptFileError
from mnist_ray.storage.files import StoragePath, children, create_atomic, read, read_each, seal, sealed_json, unsealed


class EventLog:
    """A reader of the log that knows how far it has read, and can add what comes next."""

    def __init__(self, folder: StoragePath) -> None:
        self.folder = folder
        self.num_read = 0
        self._seal = ""  # of the last event read

    @property
    def exists(self) -> bool:
        return any(self._numbers())

    def read_new(self) -> list[dict[str, Any]]:
        """The events since the last call. Raises CorruptFileError for one that is damaged or missing."""
        events = self._read_listed() if self.num_read == 0 else []
        while (event := self.peek()) is not None:
            self._advance(event)
            events.append(event)
        return events

    def _read_listed(self) -> list[dict[str, Any]]:
        """All that a listing shows, read together: from a store one after another would take minutes."""
        numbers = set(self._numbers())
        paths = [self._path(number) for number in range(1, max(numbers, default=0) + 1)]
        missing = [path for number, path in enumerate(paths, start=1) if number not in numbers]
        events = []
        for content in read_each(paths[: paths.index(missing[0])] if missing else paths):
            events.append(self._checked(content))
            self._advance(events[-1])
        if missing:
            raise CorruptFileError(f"{missing[0]} is missing: {REMEDY}")
        return events

    def add(self, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Publish an event as the next one. Raises FileExistsError if that number is taken, OSError."""
        event = {"event": self.num_read + 1, "previous": self._seal, "kind": kind, **facts}
        create_atomic(self._path(event["event"]), sealed_json(event), f"event-{facts.get('stage', kind)}")
        self._advance(event)
        return event

    def peek(self) -> dict[str, Any] | None:
        """The next event, if somebody added one; it stays unread."""
        try:
            content = read(self._path(self.num_read + 1))
        except FileNotFoundError:
            return None
        return self._checked(content)

    def _advance(self, event: dict[str, Any]) -> None:
        self._seal = seal(event)
        self.num_read = event["event"]

    def _checked(self, content: bytes) -> dict[str, Any]:
        """content: of the next event."""
        path = self._path(self.num_read + 1)
        try:
            event: dict[str, Any] = unsealed(content, path)
        except CorruptFileError as error:
            raise CorruptFileError(f"{error}: {REMEDY}") from None
        if (event["event"], event["previous"]) != (self.num_read + 1, self._seal):
            raise CorruptFileError(f"{path} does not follow the event before it: {REMEDY}")
        return event

    def _numbers(self) -> Iterator[int]:
        return (int(path.stem) for path in children(self.folder, "[0-9]*.json") if path.stem.isdigit())

    def _path(self, number: int) -> StoragePath:
        return self.folder / f"{number:06d}.json"


REMEDY = "bring the file back from a copy of the run's folder, or start a new run (--name)"
