"""One run under fire: its command is started until it is done, and processes are killed where the aims say."""

import hashlib
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.event_log import EventLog
from mnist_ray.record.events import EpochReported, Event, TrainingCreated, TrainingEnded, kind_of
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import Training
from tools.chaos import processes
from tools.chaos.processes import Process, Role
from tools.chaos.session import STAGES, Job, Session, Stage

POLL_S = 0.02
RECORD_POLL_S = 0.2  # reading the record takes some milliseconds of one of two busy cores
SESSION_LIMIT_S = 600.0  # an undisturbed run takes a fraction of it, on a busy machine too
LEAVING_LIMIT_S = 15.0  # until none of a driver's processes may be left
WORK: tuple[Literal["search", "retrain"], ...] = ("search", "retrain")  # the stages with trainings
FAILURES_LIMIT = 5  # sessions of one run that end by themselves before their work is done


class StuckRunError(RuntimeError):
    """A run that does not end by its command."""


@dataclass(frozen=True)
class Aim:
    """Whom to kill, and when."""

    stage: Stage
    role: Role
    epochs: int = 0  # of the stage's trainings that are on record, at least
    delay_s: float = 0.0  # from when the stage and the epochs are there


@dataclass(frozen=True)
class Kill:
    """A process that was killed, and the point that it hit."""

    number: int
    run: str
    seed: int
    seconds: float  # since the loop began
    at: float  # Unix time
    stage: Stage
    target: Role
    title: str
    num_events: int  # on record at that moment
    last_event: str
    ended: dict[str, str]  # the finished trainings on record, each with the hash of all that is known of it

    def __str__(self) -> str:
        return (
            f"kill {self.number} (seed {self.seed}) after {self.seconds:.1f} s: {self.run}, {self.stage}, "
            f"{self.target} [{self.title[:40]}], on record {self.num_events} events, last {self.last_event}"
        )


@dataclass
class Story:
    """What happened to one run."""

    run: str
    kills: list[Kill] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)  # of its sessions; -9 for a killed driver
    gave_up: list[str] = field(default_factory=list)  # sessions that ended by themselves, and not with 0
    left_behind: list[str] = field(default_factory=list)  # processes that outlived the run
    stuck: str | None = None  # why it was given up
    num_missed: int = 0  # aims at what was over, or never there
    signs: dict[Stage, float] = field(default_factory=dict)  # Unix times of the last session's stages
    starts_s: list[float] = field(default_factory=list)  # how long its sessions were in the stage "start"
    began: float = 0.0
    ended: float = 0.0

    @property
    def elapsed_s(self) -> float:
        return self.ended - self.began


class Killer:
    """Runs jobs and kills what the aims say; numbers its kills over all runs."""

    def __init__(self, seed: int, say: Callable[[str], None]) -> None:
        self._seed = seed
        self._say = say
        self._began = time.time()
        self._num_kills = 0

    def run(self, job: Job, name: str, aims: Sequence[Aim] = (), forget: bool = False) -> Story:
        """Start the command until it ends with 0.

        forget: after each driver that is killed nothing of the run is left, as if it had never been written.
        """
        fire = _Fire(job, name, aims, forget, self._seed, self._hit)
        try:
            fire.until_done()
        finally:
            fire.clean_up()
        return fire.story

    def _hit(self, **facts: Any) -> Kill:
        self._num_kills += 1
        now = time.time()
        kill = Kill(number=self._num_kills, seed=self._seed, at=now, seconds=now - self._began, **facts)
        self._say(str(kill))
        return kill


class _Fire:
    def __init__(
        self, job: Job, name: str, aims: Sequence[Aim], forget: bool, seed: int, hit: Callable[..., Kill]
    ) -> None:
        self.story = Story(name)
        self._job = job
        self._forget = forget
        self._hit = hit
        self._pending = deque(aims)
        self._generator = random.Random(f"{seed}/{name}/victims")
        self._sessions: list[Session] = []
        self._due: float | None = None  # when the next aim is shot at; None while its conditions do not hold
        self._record_read = 0.0

    @property
    def _run(self) -> RunDir:
        """Read anew each time: a record that is gone has to be seen as gone."""
        return RunDir(self._job.storage / self.story.run)

    def until_done(self) -> None:
        self.story.began = time.time()
        try:
            while not self._one_session():
                pass
        except (StuckRunError, CorruptFileError) as error:
            self.story.stuck = str(error)
        self.story.ended = time.time()
        self.story.num_missed += len(self._pending)

    def clean_up(self) -> None:
        """Note what is left after the time that it has to leave, and end it."""
        deadline = time.time() + LEAVING_LIMIT_S
        while any(session.left_behind() for session in self._sessions) and time.time() < deadline:
            time.sleep(0.2)
        for session in self._sessions:
            self.story.left_behind += [process.title for process in session.left_behind()]
            session.end()

    def _one_session(self) -> bool:
        """Whether the run is done."""
        session = Session(self._job, self.story.run)
        self._sessions.append(session)
        self._due = None
        while session.exit_code is None:
            if time.time() - session.began > SESSION_LIMIT_S:
                session.end()
                raise StuckRunError(
                    f"{self.story.run} did not end in {SESSION_LIMIT_S:g} s: {session.output()[-3000:]}"
                )
            self._look(session)
            time.sleep(POLL_S)
        self.story.exit_codes.append(session.wait())
        self.story.signs = session.signs
        self.story.starts_s += [at - session.began for at in list(session.signs.values())[1:2]]
        was_killed = bool(self.story.kills) and self.story.kills[-1].target == "driver" and session.exit_code == -9
        if session.exit_code and not was_killed:
            self._note_failure(session)
        return session.exit_code == 0

    def _note_failure(self, session: Session) -> None:
        last = str(self.story.kills[-1]) if self.story.kills else "no kill"
        printed = session.output().strip()[-2000:]
        self.story.gave_up.append(f"exit code {session.exit_code} after [{last}]: {printed}")
        if len(self.story.gave_up) >= FAILURES_LIMIT:
            raise StuckRunError(f"{self.story.run} failed {FAILURES_LIMIT} times: {self.story.gave_up[-1]}")

    def _look(self, session: Session) -> None:
        stage = session.stage()
        while self._pending and STAGES.index(stage) > STAGES.index(self._pending[0].stage):
            self._next_aim()
            self.story.num_missed += 1
        if self._pending and stage == self._pending[0].stage and self._is_due(self._pending[0]):
            self._shoot(self._pending[0], session)

    def _next_aim(self) -> None:
        self._pending.popleft()
        self._due = None

    def _is_due(self, aim: Aim) -> bool:
        if self._due is None and self._num_epochs(aim) >= aim.epochs:
            self._due = time.time() + aim.delay_s
        return self._due is not None and time.time() >= self._due

    def _num_epochs(self, aim: Aim) -> int:
        """Of the aim's stage, on record; looked up now and then only."""
        if aim.epochs == 0 or time.time() - self._record_read < RECORD_POLL_S:
            return 0
        self._record_read = time.time()
        return sum(
            training.epochs_done
            for stage in WORK
            if stage == aim.stage
            for training in self._run.state.trainings(stage)
        )

    def _shoot(self, aim: Aim, session: Session) -> None:
        """Nothing happens while there is nobody to hit."""
        victim = self._victim(aim.role, session)
        if victim is None or not processes.kill(victim):
            return
        target = victim.role or "driver"
        if target == "driver":
            session.wait()  # the record stands still then
        facts = on_record(self._run)
        self.story.kills.append(
            self._hit(run=self.story.run, stage=aim.stage, target=target, title=victim.title, **facts)
        )
        if target == "driver" and self._forget:
            session.end()  # a rank that still lives would save a checkpoint
            shutil.rmtree(self._run.path, ignore_errors=True)  # a folder without a record would be refused
        self._next_aim()

    def _victim(self, role: Role, session: Session) -> Process | None:
        """Other workers come and go; where there is none the driver is meant."""
        candidates = [process for process in session.processes() if process.role == role]
        if candidates:
            return self._generator.choice(candidates)
        return session.driver() if role in ("driver", "other") else None


def on_record(run: RunDir) -> dict[str, Any]:
    """Return how far the record is, and a digest of each finished training."""
    events = events_of(run)
    return {
        "num_events": len(events),
        "last_event": describe(events[-1]) if events else "none",
        "ended": {training.id: digest(training) for training in finished(run)},
    }


def events_of(run: RunDir) -> list[Event]:
    """Return every event on record, in order. Raises CorruptFileError."""
    return [numbered.event for numbered in EventLog(run.paths.record).read_new()]


def finished(run: RunDir) -> list[Training]:
    """Return the trials and retrainings that have ended."""
    state = run.state
    return [training for stage in WORK for training in state.trainings(stage) if training.ended is not None]


def digest(training: Training) -> str:
    """Hash all that is on record of a training, times included: another run of it has another digest."""
    content = [training.id, training.stage, training.config, training.history, training.ended]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def name_of(event: Event) -> str:
    """Return the event's kind, such as epoch_reported."""
    return kind_of(type(event))


def training_of(event: Event) -> str | None:
    """Return the training whose beginning, epoch or end an event is; None for the other events."""
    return event.id if isinstance(event, TrainingCreated | EpochReported | TrainingEnded) else None


def epoch_of(event: Event) -> int | None:
    return event.metrics.epoch if isinstance(event, EpochReported) else None


def describe(event: Event) -> str:
    parts = [name_of(event), training_of(event), epoch_of(event)]
    return " ".join(str(part) for part in parts if part is not None)
