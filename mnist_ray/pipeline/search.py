"""The driver's part of a search: which trial comes next, which one goes on, and what goes on record."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from mnist_ray.config import JobSpec, Stage, Status, TrainingConfig
from mnist_ray.errors import CorruptFileError, TakenOverError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.early_stopping import SuccessiveHalving
from mnist_ray.pipeline.tasks import Execution, Failure, TrainingTask
from mnist_ray.record.events import EpochReported, TrainingCreated, TrainingEnded
from mnist_ray.record.selection import FinalTraining
from mnist_ray.record.state import Training
from mnist_ray.record.study import SearchStudy, seed_of_trial
from mnist_ray.record.writer import RunWriter

logger = logging.getLogger(__name__)

WAIT_S = 0.02  # for the publication of a new trial, before the driver looks after the other trials again
CREATE_S = 0.01  # of suggestions, which take milliseconds each, before the driver looks after the other trials again


class Waiting(Enum):
    """The answer to a free slot whose next trial is not published yet."""

    WAITING = "waiting"


WAITING = Waiting.WAITING


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that is not on record yet."""

    id: str
    config: TrainingConfig
    number: int | None = None  # of a trial of the search, counted from 0
    of: str | None = None  # of a training of the final: the trial that it repeats, or "recipe"


class TrialSource(Protocol):
    """The origin of a stage's trials."""

    @property
    def stage(self) -> Stage: ...

    @property
    def num_left(self) -> int:
        """The number of trials that `next` has not returned."""

    def next(self) -> PlannedTrial | None:
        """Return the next trial; None after the last."""

    def tell(self, training: Training) -> None:
        """Take a trial's outcome into account."""


class SuggestedTrials:
    """The trials of the search: the fixed ones, then those that Optuna suggests."""

    stage: Stage = "search"

    def __init__(self, spec: JobSpec, trials: Sequence[Training]) -> None:
        """trials: those on record, in the order of their numbers."""
        self._spec = spec
        self._study = SearchStudy(spec, trials)

    @property
    def num_left(self) -> int:
        return max(0, self._spec.search.num_trials - self._study.num_suggested)

    def next(self) -> PlannedTrial | None:
        if not self.num_left:
            return None
        number = self._study.num_suggested
        seed = seed_of_trial(self._spec.seed, number)
        config = self._spec.training_config(self._study.suggest(), self._spec.search.num_epochs, seed)
        return PlannedTrial(f"trial-{number:04d}", config, number=number)

    def tell(self, training: Training) -> None:
        self._study.tell(training)


class PlannedFinal:
    """The trainings of the final round; all are known beforehand."""

    stage: Stage = "final"

    def __init__(self, plans: Sequence[FinalTraining]) -> None:
        """plans: those that are not on record yet."""
        self._plans = deque(plans)

    @property
    def num_left(self) -> int:
        return len(self._plans)

    def next(self) -> PlannedTrial | None:
        if not self._plans:
            return None
        plan = self._plans.popleft()
        return PlannedTrial(plan.id, plan.config, of=plan.of)

    def tell(self, training: Training) -> None:
        pass


class TrialController:
    """Decides on the trials of one stage and records what they report.

    A backend drives it from one thread. Epochs are queued for publication and never wait; early stopping decides on
    what was reported. A new trial is published, with everything before it, before a backend gets it. An error of the
    record is kept, and `poll` raises it: Ray Tune takes what its callbacks raise for failures of trials.
    """

    def __init__(
        self,
        spec: JobSpec,
        writer: RunWriter,
        source: TrialSource,
        early_stopping: SuccessiveHalving | None,
        num_concurrent: int,
        seconds_left: float | None = None,
        model_of: Callable[[str], bytes] | None = None,
    ) -> None:
        """early_stopping: None where every trial goes on to its end.

        model_of: the weights of a complete training, which are kept on record; None where they are not wanted.
        """
        self.spec = spec
        self.source = source
        self.num_concurrent = num_concurrent
        self.seconds_left = seconds_left
        self._deadline = time.monotonic() + (float("inf") if seconds_left is None else seconds_left)
        self._writer = writer
        self._early_stopping = early_stopping
        self._model_of = model_of
        self._failure: OSError | CorruptFileError | TakenOverError | None = None
        recorded = [
            replace(training, history=list(training.history), reported_at=list(training.reported_at))
            for training in writer.run.state.trainings(source.stage)
        ]
        self._trainings = {training.id: training for training in recorded}
        self._interrupted = deque(training for training in recorded if training.ended is None)
        self._created: deque[tuple[int, Training]] = deque()  # with the numbers of their events, not handed out yet
        self._in_flight: set[str] = set()
        self._has_reported = False
        self._pruned: set[str] = set()
        self._decide_again(recorded)

    @property
    def in_flight(self) -> set[str]:
        """The trainings that a backend has and that have not ended."""
        return set(self._in_flight)

    @property
    def is_nearly_over(self) -> bool:
        """Whether a trial has reported, and every slot gets at most one more trial."""
        num_left = len(self._interrupted) + len(self._created) + self.source.num_left
        return self._has_reported and (num_left <= self.num_concurrent or self.is_out_of_time)

    @property
    def is_out_of_time(self) -> bool:
        return time.monotonic() >= self._deadline

    # --- what comes next

    def next_task(self, timeout_s: float = WAIT_S) -> TrainingTask | Waiting | None:
        """Return a free slot's next trial: an interrupted one, else a new one; None after the last.

        WAITING means that the trial is not published within `timeout_s`: call again. Errors are kept for `poll`.
        """
        if self._failure is not None or self.is_out_of_time:
            return None
        if self._interrupted:
            return self._task(self._interrupted.popleft())
        try:
            self._create_trials()
            if not self._created:
                return None
            number, training = self._created[0]
            if not self._writer.wait(number, timeout_s):
                return WAITING
        except (OSError, TakenOverError) as error:
            self._failure = error
            return None
        self._created.popleft()
        return self._task(training)

    def _create_trials(self) -> None:
        """Create a trial for each free slot, so that one publication serves all of them; for CREATE_S at most."""
        until = time.monotonic() + CREATE_S
        while not self._created or (
            len(self._in_flight) + len(self._created) < self.num_concurrent and time.monotonic() < until
        ):
            planned = self.source.next()
            if planned is None:
                return
            created = TrainingCreated(
                id=planned.id, stage=self.source.stage, config=planned.config, number=planned.number, of=planned.of
            )
            training = Training(planned.id, self.source.stage, planned.config, created.at, planned.number, planned.of)
            self._trainings[planned.id] = training
            self._created.append((self._writer.record(created), training))

    def _task(self, training: Training) -> TrainingTask:
        self._in_flight.add(training.id)
        return training_task(training.id, training.config, self._writer)

    # --- what a backend reports

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> bool:
        """Record an epoch and return whether the trial goes on.

        An epoch that is on record already, because it was read from a checkpoint, is not recorded again.
        """
        self._has_reported = True
        training = self._trainings[training_id]
        if metrics not in training.history:
            reported = EpochReported(id=training_id, metrics=metrics)
            training.add_epoch(metrics, reported.at)
            self._keep_failure(lambda: self._writer.record(reported))
        goes_on = self._decide(training, metrics)
        if not goes_on:
            self._pruned.add(training_id)
        return goes_on

    def _decide_again(self, recorded: Sequence[Training]) -> None:
        """Decide on what earlier sessions reported, in the order of the first reports, so that no decision changes."""
        reports = [
            (training.first_reports[metrics.epoch], training, metrics)
            for training in recorded
            for metrics in training.history
        ]
        for _, training, metrics in sorted(reports, key=lambda report: report[0]):
            self._decide(training, metrics)

    def _decide(self, training: Training, metrics: EpochMetrics) -> bool:
        """Return whether a trial goes on; the fixed trials always do."""
        if self._early_stopping is None:
            return True
        objective = metrics.objective(self.spec.search.objective)
        is_fixed = training.number is not None and training.number < len(self.spec.fixed_trials)
        return self._early_stopping.is_worth_going_on(training.id, metrics.epoch, objective, is_fixed)

    def on_end(self, training_id: str, execution: Execution, failure: Failure | None = None) -> None:
        """Record the end of a trial; a trial that did not fail, finish or stop early was interrupted and stays open."""
        if training_id not in self._in_flight:
            return
        training = self._trainings[training_id]
        epochs_done = training.epochs_done
        if failure is not None:
            self._end(training_id, execution, "failed", failure.reason, failure.trace)
        elif epochs_done >= training.config.num_epochs:
            self._end(training_id, execution, "complete", None)
        elif training_id in self._pruned:
            self._end(training_id, execution, "pruned", f"among the worst at epoch {epochs_done}")

    def on_storage_failure(self, error: OSError) -> None:
        """Keep an error of a trial's storage, which would meet every trial in turn, for `poll`."""
        self._failure = self._failure or error

    def on_restart(self, training_id: str, reason: str) -> None:
        """Report to the user that a trial is started again."""
        logger.info("starting %s again: %s", training_id, reason)

    def poll(self) -> None:
        """Pass on what is published. Raises OSError, TakenOverError, which end the stage.

        A backend calls this at least once a second.
        """
        if self._failure is not None:
            raise self._failure
        self._writer.poll()

    def is_over(self) -> bool:
        """Pass on what is published and report whether the stage ends now: its time is up, or `poll` will raise."""
        try:
            self._writer.poll()
        except (OSError, TakenOverError) as error:
            self._failure = self._failure or error
        return self._failure is not None or self.is_out_of_time

    def stop_what_is_left(self, execution_of: Callable[[str], Execution]) -> None:
        """Record all open trials as stopped where the time budget is used up; otherwise they stay open.

        Among them are trials that no slot was free for any more: new ones, and those of an earlier session.
        execution_of: called with each trial's id, also of a trial that the backend never got.
        """
        if not self.is_out_of_time or self._failure is not None:
            return
        self._in_flight.update(training.id for training in self._interrupted)
        self._in_flight.update(training.id for _, training in self._created)
        self._interrupted.clear()
        self._created.clear()
        for training_id in sorted(self._in_flight):
            self._end(training_id, execution_of(training_id), "stopped", f"max_hours {self.spec.max_hours} over")

    def _end(
        self, training_id: str, execution: Execution, status: Status, reason: str | None, trace: str | None = None
    ) -> None:
        self._in_flight.remove(training_id)
        model = None
        if status == "complete" and self._model_of is not None:
            try:
                model = self._writer.put_blob(self._model_of(training_id), "model")
            except (OSError, CorruptFileError, TakenOverError) as error:
                self._failure = self._failure or error
                return
        ended = TrainingEnded(
            id=training_id,
            status=status,
            reason=reason,
            workers=execution.workers,
            threads=execution.threads,
            device=execution.device,
            num_failures=execution.num_failures,
            steps=execution.steps,
            trace=trace,
            model=model,
        )
        training = self._trainings[training_id]
        training.ended = ended
        self._keep_failure(lambda: self._writer.record(ended))
        self.source.tell(training)

    def _keep_failure(self, record: Callable[[], int]) -> None:
        try:
            record()
        except (OSError, TakenOverError) as error:
            self._failure = self._failure or error


def training_task(training_id: str, config: TrainingConfig, writer: RunWriter) -> TrainingTask:
    """Return the task of a training of the writer's run."""
    paths = writer.run.paths
    return TrainingTask(
        training_id, config, str(paths.checkpoints(training_id)), writer.fencing_token, str(paths.first_file)
    )
