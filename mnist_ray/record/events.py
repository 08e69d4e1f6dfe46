"""Every kind of event that a run's log can hold, and how an event is written as JSON and read back.

An event is a frozen dataclass. The log numbers events from 1 on (event_log.py); a stage that rests on another one
records the number of that event, and times are only shown to people.
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from mnist_ray.config import Hyperparameters, JobSpec, Role, Stage, Status, StepMode, TrainingConfig
from mnist_ray.metrics import EpochMetrics, Score

RECORD_FORMAT = 5  # moves when a release can no longer go on with the runs of the one before


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- parts of events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, described so that another process can check whether it still runs (process.py)."""

    pid: int
    pid_started: str | None  # in clock ticks since boot
    boot: str  # of the machine
    processes: str  # the namespace of process ids, which tells containers apart


@dataclass(frozen=True)
class DataFacts:
    """The identity of the training data and of the split."""

    training_sha256: str
    split_sha256: str
    num_training: int


@dataclass(frozen=True)
class ClusterFacts:
    """The machines of a session."""

    backend: Literal["ray", "local"]
    cpus: int
    gpus: int
    processors: tuple[str, ...] = ()  # the different ones


@dataclass(frozen=True)
class Provenance:
    """The code and the hardware of the driver."""

    source_sha256: str
    git_commit: str | None  # None outside a repository
    git_is_dirty: bool | None
    processor: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinalistMean:
    """The result of one configuration in the final round."""

    of: str  # its trial, or "recipe"
    mean: float | None  # of the objective over the seeds; None where a seed failed


@dataclass(frozen=True)
class FinalResult:
    """The finalists' means, and by how much the recipe had to be beaten."""

    finalists: tuple[FinalistMean, ...]  # in the order of the search's ranking, the recipe last
    deviation: float | None  # the standard deviation over seeds, pooled over the configurations; None with one seed
    margin: float  # in the objective's unit

    def mean_of(self, name: str) -> float | None:
        """Return a configuration's mean; None where it failed or was no finalist."""
        return next((finalist.mean for finalist in self.finalists if finalist.of == name), None)


@dataclass(frozen=True)
class PlannedRetraining:
    """A training that follows from the selected configuration."""

    id: str
    role: Role
    config: TrainingConfig


@dataclass(frozen=True)
class TestScore:
    """The result of one model on one test."""

    score: Score
    logits: str  # the blob of the model's logits, (N, 10) float32 in the test's order, as npy


# --- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """The base of all events."""

    at: str = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class RunTaken(Event):
    """A process became the run's owner; the event's number is the owner's fencing token."""

    format: int
    version: str
    host: str
    process: ProcessIdentity

    def __str__(self) -> str:
        return f"process {self.process.pid} on host {self.host}, the owner since {self.at}"


@dataclass(frozen=True, kw_only=True)
class SessionStarted(Event):
    """The owner has its data and its cluster."""

    spec: JobSpec
    data: DataFacts
    versions: dict[str, str]
    cluster: ClusterFacts
    provenance: Provenance
    data_s: float  # seconds of loading the data


@dataclass(frozen=True, kw_only=True)
class TrainingCreated(Event):
    """A training was decided on: a trial, a training of the final round or a retraining."""

    id: str
    stage: Stage
    config: TrainingConfig
    number: int | None = None  # of a trial, counted from 0
    of: str | None = None  # of a training of the final: the trial that it repeats, or "recipe"


@dataclass(frozen=True, kw_only=True)
class EpochReported(Event):
    """A training completed an epoch."""

    id: str
    metrics: EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrainingEnded(Event):
    """A training came to its end."""

    id: str
    status: Status
    reason: str | None = None
    workers: int = 1
    threads: int = 1  # of each worker
    device: str = "cpu"
    num_failures: int = 0  # how often the training was started again
    steps: StepMode | None = None  # None where the training did not get that far
    trace: str | None = None  # the traceback of a failure
    model: str | None = None  # the blob of the trained weights, as safetensors
    taken_from: str | None = None  # RUN/TRAINING where another run trained it (retrain.baseline_from)


@dataclass(frozen=True, kw_only=True)
class SearchStarted(Event):
    """A session began to search."""


@dataclass(frozen=True, kw_only=True)
class SearchEnded(Event):
    """All trials have ended, or the time budget is used up."""

    num_trials: int
    out_of_time: bool
    used_s: float  # in all sessions
    elapsed_s: float  # in this one


@dataclass(frozen=True, kw_only=True)
class FinalStarted(Event):
    """A session began the final round."""

    trainings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FinalEnded(Event):
    """All trainings of the final round have ended."""

    trainings: tuple[str, ...]
    rests_on: int  # the number of the SearchEnded
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class ConfigurationSelected(Event):
    """A configuration was selected, and its retrainings follow."""

    training: str | None  # the trial; None without a search
    hyperparameters: Hyperparameters
    score: float | None  # the objective at the trial's last epoch
    final: FinalResult | None  # what decided; None without a final round
    is_complete: bool  # False where no trial reached the full budget
    retrainings: tuple[PlannedRetraining, ...]
    rests_on: int  # the number of the SearchEnded; 0 without a search


@dataclass(frozen=True, kw_only=True)
class RetrainingEnded(Event):
    """All planned retrainings have ended."""

    rests_on: int  # the number of the ConfigurationSelected
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class RetrainingFailed(Event):
    """The workers of the retraining died too often."""

    error: str


@dataclass(frozen=True, kw_only=True)
class TestOpened(Event):
    """The test split was opened; nothing is selected after this."""

    data: str
    also: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TestScored(Event):
    """Every retrained model was scored."""

    scores: dict[str, dict[str, TestScore]]  # by training, then by test ("test" or a second test's name)
    examples: dict[str, str]  # by test, the blob of labels and of the missed images, as safetensors
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of a kind that this release does not have; readers pass over such events, writers refuse the run."""

    kind: str


EVENTS: tuple[type[Event], ...] = (
    RunTaken,
    SessionStarted,
    TrainingCreated,
    EpochReported,
    TrainingEnded,
    SearchStarted,
    SearchEnded,
    FinalStarted,
    FinalEnded,
    ConfigurationSelected,
    RetrainingEnded,
    RetrainingFailed,
    TestOpened,
    TestScored,
)

# Events that belong to stages rather than to single trainings or owners.
StageEvent = (
    SessionStarted
    | SearchStarted
    | SearchEnded
    | FinalStarted
    | FinalEnded
    | ConfigurationSelected
    | RetrainingEnded
    | RetrainingFailed
    | TestOpened
    | TestScored
)

E = TypeVar("E", bound=Event)


# --- JSON --------------------------------------------------------------------------------------------------------


def kind_of(event: type[Event]) -> str:
    """The name of an event's kind in the log: EpochReported -> epoch_reported."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()


_BY_KIND = {kind_of(event): event for event in EVENTS}


_adapters: dict[type[Event], TypeAdapter[Any]] = {}  # made when first needed, which takes milliseconds


def _adapter(event: type[Event]) -> TypeAdapter[Any]:
    if event not in _adapters:
        _adapters[event] = TypeAdapter(event)
    return _adapters[event]


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON values, `kind` first."""
    return {"kind": kind_of(type(event)), **_adapter(type(event)).dump_python(event, mode="json")}


def from_json(content: Any) -> Event:
    """The event that `to_json` wrote; an UnknownEvent for another release's kind.

    Raises ValueError for a content that is no event.
    """
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise ValueError(f"{content!r:.80} is no event")
    event = _BY_KIND.get(content["kind"])
    if event is None:
        return UnknownEvent(at=str(content.get("at", "")), kind=content["kind"])
    try:
        values = {name: value for name, value in content.items() if name != "kind"}
        read: Event = _adapter(event).validate_python(values)
        return read
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"the event {content['kind']} has a wrong {key or 'content'}: {first['msg']}") from None
