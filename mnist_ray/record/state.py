"""The state of a run, as its events say: one typed object that is made by applying them in order."""

from dataclasses import dataclass, field
from typing import Any, Generic, cast

from mnist_ray.config import JobSpec, Stage, Status, TrainingConfig
from mnist_ray.errors import CorruptFileError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.record.event_log import REMEDY, Numbered
from mnist_ray.record.events import (
    ConfigurationSelected,
    E,
    EpochReported,
    Event,
    FinalEnded,
    RetrainingEnded,
    RetrainingFailed,
    RunTaken,
    SearchEnded,
    SearchStarted,
    SessionStarted,
    StageEvent,
    TestOpened,
    TestScored,
    TrainingCreated,
    TrainingEnded,
    UnknownEvent,
    kind_of,
)
from mnist_ray.record.paths import checked_id


@dataclass
class Training:
    """One training on record: a trial, a training of the final round, or a retraining."""

    id: str
    stage: Stage
    config: TrainingConfig
    created_at: str
    number: int | None = None  # of a trial, counted from 0
    of: str | None = None  # of a training of the final: the trial that it repeats, or "recipe"
    history: list[EpochMetrics] = field(default_factory=list)  # one entry an epoch, in order
    reported_at: list[str] = field(default_factory=list)  # when each entry of `history` was reported
    first_reports: dict[int, int] = field(default_factory=dict)  # the number of the first event about each epoch
    ended: TrainingEnded | None = None

    @property
    def status(self) -> Status | None:
        """None while the training is open."""
        return self.ended.status if self.ended else None

    @property
    def reason(self) -> str | None:
        """Why the training did not reach its full budget."""
        return self.ended.reason if self.ended else None

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def elapsed_s(self) -> float:
        """Seconds in epochs, start-up aside."""
        return sum(metrics.elapsed_s for metrics in self.history)

    def add_epoch(self, metrics: EpochMetrics, at: str) -> None:
        """Append an epoch; a training that went on from an earlier epoch replaces the epochs from there on."""
        while self.history and self.history[-1].epoch >= metrics.epoch:
            self.history.pop()
            self.reported_at.pop()
        self.history.append(metrics)
        self.reported_at.append(at)


@dataclass
class Session:
    """The work of one owner: from the event that took the run to the next owner's."""

    fencing_token: int  # the number of `owner`, larger for each owner
    owner: RunTaken
    search_began_s: float | None = None  # on the session's monotonic clock
    last_search_s: float | None = None  # of the latest event of the search

    @property
    def searched_s(self) -> float:
        """Seconds of searching; up to the last event where the session was killed in the search."""
        if self.search_began_s is None or self.last_search_s is None:
            return 0.0
        return max(0.0, self.last_search_s - self.search_began_s)


@dataclass(frozen=True)
class Recorded(Generic[E]):
    """An event of a known kind with its number."""

    number: int
    event: E


class RunState:
    """Everything that follows from a run's events. Whether a stage is current is decided by event numbers."""

    def __init__(self) -> None:
        self.num_events = 0
        self.sessions: list[Session] = []
        self.stage_events: list[StageEvent] = []  # in order
        self.unknown_kinds: set[str] = set()  # of events that only another release reads
        self._trainings: dict[str, Training] = {}
        self._latest: dict[type[Event], Recorded[Any]] = {}

    # --- trainings

    def trainings(self, stage: Stage) -> list[Training]:
        """Return a stage's trainings in the order of their ids, by number."""
        found = [training for training in self._trainings.values() if training.stage == stage]
        return sorted(found, key=lambda each: (len(each.id), each.id))

    def training(self, training_id: str) -> Training | None:
        """Return a training; None if it was never created."""
        return self._trainings.get(training_id)

    def has_ended(self, training_id: str) -> bool:
        training = self._trainings.get(training_id)
        return training is not None and training.ended is not None

    def num_ended(self, stage: Stage) -> int:
        return sum(training.stage == stage and training.ended is not None for training in self._trainings.values())

    # --- owners

    @property
    def session(self) -> Session | None:
        """The latest owner's session."""
        return self.sessions[-1] if self.sessions else None

    @property
    def fencing_token(self) -> int:
        """A number that is larger for each owner; 0 without one."""
        return self.sessions[-1].fencing_token if self.sessions else 0

    @property
    def searched_s(self) -> float:
        """Seconds of searching in all sessions."""
        return sum(session.searched_s for session in self.sessions)

    # --- stages

    def latest(self, kind: type[E]) -> Recorded[E] | None:
        """Return the latest event of a kind with its number."""
        return cast(Recorded[E] | None, self._latest.get(kind))

    def number_of(self, kind: type[Event]) -> int:
        """Return the number of the latest event of a kind; 0 without one."""
        found = self._latest.get(kind)
        return found.number if found else 0

    def _event(self, kind: type[E]) -> E | None:
        found = self.latest(kind)
        return found.event if found else None

    @property
    def started(self) -> SessionStarted | None:
        """The latest session's start."""
        return self._event(SessionStarted)

    @property
    def starts(self) -> list[SessionStarted]:
        """The starts of all sessions that got that far."""
        return [event for event in self.stage_events if isinstance(event, SessionStarted)]

    @property
    def search_started(self) -> SearchStarted | None:
        return self._event(SearchStarted)

    @property
    def search_ended(self) -> SearchEnded | None:
        return self._event(SearchEnded)

    @property
    def final_ended(self) -> FinalEnded | None:
        return self._event(FinalEnded)

    @property
    def selected(self) -> ConfigurationSelected | None:
        return self._event(ConfigurationSelected)

    @property
    def retrained(self) -> RetrainingEnded | None:
        return self._event(RetrainingEnded)

    @property
    def retraining_failed(self) -> RetrainingFailed | None:
        return self._event(RetrainingFailed)

    @property
    def test_opened(self) -> TestOpened | None:
        return self._event(TestOpened)

    @property
    def tested(self) -> TestScored | None:
        return self._event(TestScored)

    def search_is_open(self, spec: JobSpec) -> bool:
        """Report whether trials may still be added; never after the test was opened."""
        if self.test_opened:
            return False
        ended = self.search_ended
        if ended is None or ended.num_trials < spec.search.num_trials:
            return True
        return ended.out_of_time and (spec.max_hours is None or spec.max_hours * 3600 > ended.used_s)

    @property
    def final_is_current(self) -> bool:
        return self.final_ended is not None and self.final_ended.rests_on == self.number_of(SearchEnded)

    @property
    def selection_is_current(self) -> bool:
        return self.selected is not None and self.selected.rests_on == self.number_of(SearchEnded)

    @property
    def retraining_is_current(self) -> bool:
        return self.retrained is not None and self.retrained.rests_on == self.number_of(ConfigurationSelected)

    # --- applying events

    def apply(self, numbered: Numbered) -> None:
        """Take the next event into account. Raises CorruptFileError for a training that is unknown or has no name."""
        number, event = numbered
        match event:
            case RunTaken():
                self.sessions.append(Session(number, event))
            case TrainingCreated():
                training = Training(checked_id(event.id), event.stage, event.config, event.at, event.number, event.of)
                if training.stage == "search" and training.number is None:
                    raise CorruptFileError(f"the record has a trial {event.id} without a number: {REMEDY}")
                self._trainings[event.id] = training
            case EpochReported():
                training = self._created(event.id)
                if training.stage != "retrain" and event.metrics.validation is None:
                    raise CorruptFileError(f"the record has an epoch of {event.id} without validation: {REMEDY}")
                training.add_epoch(event.metrics, event.at)
                training.first_reports.setdefault(event.metrics.epoch, number)
            case TrainingEnded():
                self._created(event.id).ended = event
            case UnknownEvent():
                self.unknown_kinds.add(event.kind)
            case _:
                _check_ids(event)
                self.stage_events.append(cast(StageEvent, event))
        self._latest[type(event)] = Recorded(number, event)
        self._count_search_time(event)
        self.num_events = number

    def _created(self, training_id: str) -> Training:
        try:
            return self._trainings[training_id]
        except KeyError:
            raise CorruptFileError(
                f"the record holds an event of {training_id!r}, which was never created: {REMEDY}"
            ) from None

    def _count_search_time(self, event: Event) -> None:
        if not self.sessions or not self.stage_events:
            return
        if isinstance(event, SearchStarted):
            self.sessions[-1].search_began_s = event.monotonic_s
        if isinstance(self.stage_events[-1], SearchStarted | SearchEnded):
            self.sessions[-1].last_search_s = event.monotonic_s

    @property
    def latest_stage(self) -> str:
        """The kind of the latest stage event, for people; `begun` before any."""
        return kind_of(type(self.stage_events[-1])).replace("_", " ") if self.stage_events else "begun"


def _check_ids(event: Event) -> None:
    """Check the ids of trainings that an event names. Raises CorruptFileError."""
    if isinstance(event, ConfigurationSelected):
        for plan in event.retrainings:
            checked_id(plan.id)
    if isinstance(event, TestScored):
        for training_id in event.scores:
            checked_id(training_id)
