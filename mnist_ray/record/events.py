"""Every kind of event that a run's log can hold, and how an event is written as JSON and read back.

An event is a frozen dataclass. The log numbers events from 1 on (event_log.py); a stage that rests on another one
records the number of that event, and times are only shown to people.
"""

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from mnist_ray.config import Hyperparameters, JobSpec, Role, Stage, Status, StepMode, TrainingConfig
from mnist_ray.metrics import Count, EpochMetrics, Finite, ReadScore, Seconds
from mnist_ray.shown import LAYOUT, is_shown, shown

DIGITS = tuple("0123456789")  # the classes of the data sets that are known by name

RECORD_FORMAT = 5  # moves when a release can no longer go on with the runs of the one before


def now() -> str:
    """The time in UTC, to the millisecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- values of events, checked when they are read: whoever sends a folder has chosen its content -------------------


def _checked_name(text: str) -> str:
    if not is_shown(text):
        raise ValueError(f"{text!r:.80} contains an invisible character")
    return text


def _checked_time(text: str) -> str:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None or not 1970 <= at.year < 2200:
        raise ValueError(f"{text!r:.40} is no time of a run")
    return text


Name = Annotated[str, Field(max_length=500), AfterValidator(_checked_name)]  # one line
Text = Annotated[str, AfterValidator(lambda text: shown(text, kept=LAYOUT))]  # of an error: anything may stand in it
Time = Annotated[str, Field(max_length=40), AfterValidator(_checked_time)]
Several = Annotated[Count, Field(ge=1, le=10_000)]  # workers, threads

# --- parts of events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, described so that another process can check whether it still runs (process.py)."""

    pid: Count
    pid_started: Name | None  # in clock ticks since boot
    boot: Name  # of the machine
    processes: Name  # the namespace of process ids, which tells containers apart


@dataclass(frozen=True)
class DataFacts:
    """The identity of the training data and of the split."""

    training_sha256: Name
    split_sha256: Name
    num_training: Count
    num_validation: Count | None = field(default=None, compare=False)  # the split identifies it; None in old records
    classes: tuple[Name, ...] = ()  # their names, in the order of the network's outputs; empty: the digits 0 to 9
    test_sha256: Name | None = None  # of the user's own images; known sets have published ones
    # The blob with a line for each file of the user's own images. Equal images in other files are the same data.
    files: Name | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ClusterFacts:
    """The machines of a session."""

    backend: Literal["ray", "local"]
    cpus: Count
    gpus: Count
    processors: tuple[Name, ...] = ()  # the different ones


@dataclass(frozen=True)
class Provenance:
    """The code and the hardware of the driver."""

    source_sha256: Name
    git_commit: Name | None  # None outside a repository
    git_is_dirty: bool | None
    processor: Name
    gpus: tuple[Name, ...] = ()


@dataclass(frozen=True)
class FinalistMean:
    """The result of one configuration in the final round."""

    of: Name  # its trial, or "recipe"
    mean: Finite | None  # of the objective over the seeds; None where a seed failed


@dataclass(frozen=True)
class FinalResult:
    """The finalists' means, and by how much the recipe had to be beaten."""

    finalists: tuple[FinalistMean, ...]  # in the order of the search's ranking, the recipe last
    deviation: Finite | None  # the standard deviation over seeds, pooled over the configurations; None with one seed
    margin: Finite  # in the objective's unit

    def mean_of(self, name: str) -> float | None:
        """Return a configuration's mean; None where it failed or was no finalist."""
        return next((finalist.mean for finalist in self.finalists if finalist.of == name), None)


@dataclass(frozen=True)
class PlannedRetraining:
    """A training that follows from the selected configuration."""

    id: Name
    role: Role
    config: TrainingConfig


@dataclass(frozen=True)
class TestScore:
    """The result of one model on one test."""

    score: ReadScore
    logits: Name  # the blob of the model's logits, (N, 10) float32 in the test's order, as npy


# --- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """The base of all events."""

    at: Time = field(default_factory=now)
    # On a clock that nobody sets: two of one session can be subtracted. None in the records of an earlier release.
    monotonic_s: Seconds | None = field(default_factory=lambda: round(time.monotonic(), 3), compare=False)


@dataclass(frozen=True, kw_only=True)
class RunTaken(Event):
    """A process became the run's owner; the event's number is the owner's fencing token."""

    format: Count
    version: Name
    host: Name
    process: ProcessIdentity

    def __str__(self) -> str:
        return f"process {self.process.pid} on host {self.host}, the owner since {self.at}"


@dataclass(frozen=True, kw_only=True)
class SessionStarted(Event):
    """The owner has its data and its cluster."""

    spec: JobSpec
    data: DataFacts
    versions: dict[Name, Name]
    cluster: ClusterFacts
    provenance: Provenance
    data_s: Seconds  # seconds of loading the data

    @property
    def num_validation(self) -> int:
        """The training examples that judge trials."""
        return self.data.num_validation or self.spec.data.num_validation or 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the network's outputs."""
        return self.data.classes or DIGITS


@dataclass(frozen=True, kw_only=True)
class TrainingCreated(Event):
    """A training was decided on: a trial, a training of the final round or a retraining."""

    id: Name
    stage: Stage
    config: TrainingConfig
    number: Count | None = None  # of a trial, counted from 0
    of: Name | None = None  # of a training of the final: the trial that it repeats, or "recipe"


@dataclass(frozen=True, kw_only=True)
class EpochReported(Event):
    """A training completed an epoch."""

    id: Name
    metrics: EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrainingEnded(Event):
    """A training came to its end."""

    id: Name
    status: Status
    reason: Text | None = None
    workers: Several = 1
    threads: Several = 1  # of each worker
    device: Name = "cpu"
    num_failures: Count = 0  # how often the training was started again
    steps: StepMode | None = None  # None where the training did not get that far
    trace: Text | None = None  # the traceback of a failure
    model: Name | None = None  # the blob of the trained weights, as safetensors
    taken_from: Name | None = None  # RUN/TRAINING where another run trained it (retrain.baseline_from)


@dataclass(frozen=True, kw_only=True)
class SearchStarted(Event):
    """A session began to search."""


@dataclass(frozen=True, kw_only=True)
class SearchEnded(Event):
    """All trials have ended, or the time budget is used up."""

    num_trials: Count
    out_of_time: bool
    used_s: Seconds  # in all sessions
    elapsed_s: Seconds  # in this one


@dataclass(frozen=True, kw_only=True)
class FinalStarted(Event):
    """A session began the final round."""

    trainings: tuple[Name, ...]


@dataclass(frozen=True, kw_only=True)
class FinalEnded(Event):
    """All trainings of the final round have ended."""

    trainings: tuple[Name, ...]
    rests_on: Count  # the number of the SearchEnded
    elapsed_s: Seconds


@dataclass(frozen=True, kw_only=True)
class RetrainingStarted(Event):
    """A session began to retrain. concurrent: how many trainings ran side by side at most."""

    concurrent: Count


@dataclass(frozen=True, kw_only=True)
class ConfigurationSelected(Event):
    """A configuration was selected, and its retrainings follow."""

    training: Name | None  # the trial; None without a search
    hyperparameters: Hyperparameters
    score: Finite | None  # the objective at the trial's last epoch
    final: FinalResult | None  # what decided; None without a final round
    is_complete: bool  # False where no trial reached the full budget
    retrainings: tuple[PlannedRetraining, ...]
    rests_on: Count  # the number of the SearchEnded; 0 without a search


@dataclass(frozen=True, kw_only=True)
class RetrainingEnded(Event):
    """All planned retrainings have ended."""

    rests_on: Count  # the number of the ConfigurationSelected
    elapsed_s: Seconds


@dataclass(frozen=True, kw_only=True)
class RetrainingFailed(Event):
    """The workers of the retraining died too often."""

    error: Text


@dataclass(frozen=True, kw_only=True)
class TestOpened(Event):
    """The test split was opened; nothing is selected after this."""

    data: Name
    also: tuple[Name, ...]
    models: tuple[Name, ...]


@dataclass(frozen=True, kw_only=True)
class TestScored(Event):
    """Every retrained model was scored."""

    scores: dict[Name, dict[Name, TestScore]]  # by training, then by test ("test" or a second test's name)
    examples: dict[Name, Name]  # by test, the blob of labels and of the missed images, as safetensors
    elapsed_s: Seconds


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
    RetrainingStarted,
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
    | RetrainingStarted
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
        return UnknownEvent(at=shown(f"{content.get('at', '')!s:.40}"), kind=shown(content["kind"][:80]))
    try:
        values = {"monotonic_s": None} | {name: value for name, value in content.items() if name != "kind"}
        read: Event = _adapter(event).validate_python(values)
        return read
    except ValidationError as error:
        first = error.errors()[0]
        key = shown(".".join(map(str, first["loc"])))[:200]
        raise ValueError(f"the event {content['kind']} has a wrong {key or 'content'}: {first['msg']}") from None
