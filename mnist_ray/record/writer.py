"""Publishing a run's events: in batches, by a thread of its own, so that nobody waits who need not.

Whoever records an event goes on at once. The thread publishes what has gathered, as one file, when the oldest event
has waited for GATHER_S, when there are MOST_GATHERED, or as soon as somebody waits. A batch that cannot be published
ends the writer: `poll`, `flush` and `wait` raise the reason, and nothing of the batch is ever shown.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from mnist_ray.errors import TakenOverError
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import Event, RunTaken
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import sha256, write_atomic

GATHER_S = 0.2
MOST_GATHERED = 1000

Subscriber = Callable[[Numbered], None]


class RunWriter:
    """The owner's way to add events to a run. All methods but `close` raise TakenOverError and OSError."""

    def __init__(self, run: RunDir, taken: RunTaken) -> None:
        """Become the run's owner, if nothing was published since `run` last looked."""
        self.run = run
        with run.lock:
            published = self._add([taken])
        self.fencing_token = published[0].number
        run.follow_writer(published)
        self._subscribers: list[Subscriber] = []
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()  # recorded, not yet published
        self._oldest_at = 0.0  # when the first of `_waiting` was recorded
        self._wanted = 0  # the largest number that somebody waits for
        self._is_closing = False
        self._num_recorded = self._num_taken = self._num_published = self.fencing_token  # taken: into a batch
        self._delivered: deque[Numbered] = deque()  # published, not yet seen by the subscribers
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._publish_batches, name="run-writer", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> int:
        """Queue an event for publication and return its number in the log."""
        with self._changed:
            self._raise_failure()
            if not self._waiting:
                self._oldest_at = time.monotonic()
            self._waiting.append(event)
            self._num_recorded += 1
            if len(self._waiting) in (1, MOST_GATHERED):
                self._changed.notify_all()
            return self._num_recorded

    def wait(self, number: int, timeout_s: float | None = None) -> bool:
        """Publish event `number` and everything recorded so far now; return whether that took less than the time."""
        with self._changed:
            self._wanted = max(self._wanted, number)
            self._changed.notify_all()
            is_published = self._changed.wait_for(
                lambda: self._num_published >= number or self._failure is not None, timeout_s
            )
            self._raise_failure()
            return is_published

    def flush(self) -> None:
        """Return once everything recorded is published and the subscribers have seen it."""
        if self._waiting or self._num_published < self._num_recorded:
            self.wait(self._num_recorded)
        self.poll()

    def publish(self, event: Event) -> int:
        """Record one event, return its number once it and everything before it is published."""
        number = self.record(event)
        self.flush()
        return number

    def poll(self) -> None:
        """Give what was published since the last call to the subscribers, in the calling thread."""
        with self._changed:
            self._raise_failure()
        while self._delivered:
            numbered = self._delivered.popleft()
            for subscriber in self._subscribers:
                subscriber(numbered)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with each event that is published from now on."""
        self._subscribers.append(subscriber)

    def put_blob(self, content: bytes, failpoint: str) -> str:
        """Keep `content` under its SHA-256, which is returned."""
        name = sha256(content)
        write_atomic(self.run.blob_path(name), content, failpoint)
        return name

    def was_taken_over(self) -> bool:
        """Report whether another process has added to the log; any thread may call this."""
        with self.run.lock:
            return isinstance(self._failure, TakenOverError) or self.run.log.is_taken_over()

    def close(self) -> None:
        """Publish what is left and end the thread; what could not be published is lost."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        self.run.unfollow_writer()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # --- the writer's thread

    def _publish_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                with self.run.lock:
                    published = self._add(batch)
            except Exception as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._num_published = published[-1].number
                self.run.incoming.extend(published)  # first: a subscriber finds an event's training in the state
                self._delivered.extend(published)
                self._changed.notify_all()

    def _next_batch(self) -> list[Event] | None:
        """Return what is to be published next; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            while self._waiting and not self._is_due():
                self._changed.wait(max(0.0, self._oldest_at + GATHER_S - time.monotonic()))
            batch = list(self._waiting)
            self._waiting.clear()
            self._num_taken += len(batch)
            return batch or None

    def _is_due(self) -> bool:
        is_full = len(self._waiting) >= MOST_GATHERED
        is_old = time.monotonic() - self._oldest_at >= GATHER_S
        return self._wanted > self._num_taken or self._is_closing or is_full or is_old

    def _add(self, events: list[Event]) -> list[Numbered]:
        """Add a file to the log. Raises TakenOverError where another process added that file."""
        log = self.run.log
        try:
            return log.add(events)
        except (FileExistsError, FileNotFoundError):  # a successor removes what was half written, too
            if not log.is_followed():
                raise
            raise TakenOverError(f"{self.run} was taken over by another process") from None
