"""The run's log of events: numbered files, each written once, with one event or several in order.

Events are numbered through all files. Each file names its first and its last event and is sealed to the file before.
Adding a file is one conditional step: the next number is given out by a hard link, or by a store that creates an
object only where there is none, and both fail if the number is taken. So of two processes that both believe to own a
run, one adds the next file, and the other learns that it was replaced; nothing of its file is published.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.events import Event, RunTaken, from_json, kind_of, to_json
from mnist_ray.storage.files import StoragePath, children, create_atomic, read, read_each, seal, sealed_json, unsealed

REMEDY = "restore the file from a copy of the run's folder, or start a new run (--name)"


class Numbered(NamedTuple):
    """An event with its number in the log."""

    number: int  # from 1 on
    event: Event


@dataclass(frozen=True)
class LogFile:
    """The content of one file of the log, sealed as a whole (storage/files.py)."""

    file: int  # the file's number, from 1 on
    first: int  # the number of its first event
    last: int  # the number of its last event
    previous: str  # the seal of the file before; "" for the first file
    events: list[dict[str, Any]]  # as events.to_json writes them


class EventLog:
    """A reader of the log that keeps its position, and adds files at the end."""

    def __init__(self, folder: StoragePath) -> None:
        self.folder = folder
        self.num_files = 0  # read so far
        self.num_events = 0  # read so far
        self.last_seal = ""  # of the last file read

    @property
    def exists(self) -> bool:
        return any(self._numbers())

    def read_new(self) -> list[Numbered]:
        """Read the events since the last call. Raises CorruptFileError for a file that is damaged or missing, OSError.

        After an error the next call begins where this one did, so that no event is passed over.
        """
        position = self.num_files, self.num_events, self.last_seal
        try:
            events = self._read_listed() if self.num_files == 0 else []
            while (content := self._next_content()) is not None:
                events += self._advance(self._checked(content))
            return events
        except BaseException:
            self.num_files, self.num_events, self.last_seal = position
            raise

    def _read_listed(self) -> list[Numbered]:
        """Read all files that a listing shows, many at once: from a store one after another would take minutes."""
        numbers = set(self._numbers())
        paths = [self._path(number) for number in range(1, max(numbers, default=0) + 1)]
        missing = [path for number, path in enumerate(paths, start=1) if number not in numbers]
        events = []
        for content in read_each(paths[: paths.index(missing[0])] if missing else paths):
            events += self._advance(self._checked(content))
        if missing:
            raise CorruptFileError(f"{missing[0]} is missing: {REMEDY}")
        return events

    def add(self, events: Sequence[Event]) -> list[Numbered]:
        """Publish events as the next file, all or none.

        Raises FileExistsError if the file's number is taken, OSError.
        """
        content = LogFile(
            file=self.num_files + 1,
            first=self.num_events + 1,
            last=self.num_events + len(events),
            previous=self.last_seal,
            events=[to_json(event) for event in events],
        )
        failpoints = [f"event-{kind_of(type(event))}" for event in events]
        create_atomic(self._path(content.file), sealed_json(asdict(content)), *failpoints)
        self._move_past(content)
        return [Numbered(content.first + index, event) for index, event in enumerate(events)]

    def is_followed(self) -> bool:
        """Report whether a file was added that this reader has not read. Raises CorruptFileError, OSError."""
        return self._next_content() is not None

    def is_taken_over(self) -> bool:
        """Report whether the file after the last one read begins with another owner. Raises CorruptFileError."""
        content = self._next_content()
        if content is None:
            return False
        return isinstance(self._events_of(self._checked(content))[0], RunTaken)

    def _next_content(self) -> bytes | None:
        try:
            return read(self._path(self.num_files + 1))
        except FileNotFoundError:
            return None

    def _events_of(self, content: LogFile) -> list[Event]:
        try:
            return [from_json(event) for event in content.events]
        except ValueError as error:
            raise CorruptFileError(f"{self._path(content.file)}: {error}: {REMEDY}") from None

    def _advance(self, content: LogFile) -> list[Numbered]:
        events = self._events_of(content)
        self._move_past(content)
        return [Numbered(content.first + index, event) for index, event in enumerate(events)]

    def _move_past(self, content: LogFile) -> None:
        self.last_seal = seal(vars(content))  # asdict copies every value: half of the time that reading a log takes
        self.num_files, self.num_events = content.file, content.last

    def _checked(self, content: bytes) -> LogFile:
        """Check the content of the next file: its seal, and that it follows the file before."""
        path = self._path(self.num_files + 1)
        try:
            file = LogFile(**unsealed(content, path))
            if not isinstance(file.events, list) or {type(each) for each in (file.file, file.first, file.last)} != {
                int
            }:
                raise TypeError
            is_whole = len(file.events) == file.last - file.first + 1 > 0
        except CorruptFileError as error:
            raise CorruptFileError(f"{error}: {REMEDY}") from None
        except TypeError:
            raise CorruptFileError(f"{path} is not a file of the event log: {REMEDY}") from None
        expected = (self.num_files + 1, self.num_events + 1, self.last_seal)
        if (file.file, file.first, file.previous) != expected or not is_whole:
            raise CorruptFileError(f"{path} does not follow the file before: {REMEDY}")
        return file

    def _numbers(self) -> Iterator[int]:
        return (int(path.stem) for path in children(self.folder, "[0-9]*.json") if path.stem.isdigit())

    def _path(self, number: int) -> StoragePath:
        return self.folder / f"{number:06d}.json"
