"""The search: Ray Tune runs the trials, the run's record and its study say what they are and came to."""

import contextlib
import dataclasses
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from mnist_ray.config import EarlyStopping, Hyperparameters, JobSpec, Search, TrainingConfig
from mnist_ray.errors import TakenOverError
from mnist_ray.ray_backend.compat import deaths_are_failures_of_one_trial, why_it_died
from mnist_ray.ray_backend.heartbeat import HANG_LIMIT_S, TrialWatch, beating
from mnist_ray.ray_backend.shared_data import SharedData
from mnist_ray.record.rundir import RunDir, Status, Training
from mnist_ray.record.selection import Confirmation
from mnist_ray.record.study import SearchStudy, direction, seed_of_trial
from mnist_ray.storage.failures import StorageFailure
from mnist_ray.storage.files import storage_path
from mnist_ray.training.checkpoint import Checkpoints, fit_resumably
from mnist_ray.training.loop import DivergedError, Worker
from mnist_ray.training.process import prepare_to_train

FAILURE = "failure"  # the key of a trial's last report if it failed: a line for people
TRACEBACK = "traceback"
DISK_TROUBLE = "disk_trouble"  # the key of a trial's last report if its disk is full or read-only: a StorageFailure


class TrialListener(Protocol):
    """Who wants to see the search as it goes."""

    def note(self, text: str) -> None: ...

    def trial_epoch(self, training_id: str, row: dict[str, Any]) -> None: ...

    def trial_ended(self, training: Training) -> None: ...


def run_trial(values: dict[str, Any], data: SharedData, settings: Search, inbox: Any) -> None:
    """One trial, in its own process, which is reused for the next one: reports a row per epoch.

    What it raises is reported as a failure with its traceback rather than raised, so that the process lives on. A
    disk that is full or read-only is no failure of the trial and is reported as what it is. Beats to the inbox.
    """
    prepare_to_train(settings.cpus_per_trial)
    config = TrainingConfig(**values["config"])
    worker = Worker(device=torch.device(_device(settings)))
    folder = storage_path(values["checkpoints"])
    checkpoints = Checkpoints.of_generation(folder, values["generation"], config, storage_path(values["must_see"]))
    num_reported = 0
    with beating(inbox, values["training_id"]):
        try:
            for state in fit_resumably(config, data.get(worker.device), checkpoints, worker):
                for row in state.history[num_reported:]:
                    tune.report(row)
                num_reported = len(state.history)
        except DivergedError as error:
            tune.report(_failure(str(error), None))
        except Exception as error:
            trouble = StorageFailure.from_error(error, folder) if isinstance(error, OSError) else None
            reason = f"{type(error).__name__}: {error}"
            tune.report(
                {DISK_TROUBLE: trouble} if trouble else _failure(reason.splitlines()[0], traceback.format_exc())
            )


def _device(settings: Search) -> str:
    return "cuda" if settings.gpus_per_trial else "cpu"


def _failure(reason: str, trace: str | None) -> dict[str, Any]:
    return {FAILURE: reason, TRACEBACK: trace}


def search(
    spec: JobSpec,
    run: RunDir,
    data: SharedData,
    num_concurrent: int,
    seconds_left: float | None,
    listener: TrialListener,
    hang_limit_s: float = HANG_LIMIT_S,
) -> None:
    """Run the trials that are not on record yet; everything that happens goes into the record at once.

    Returns early when `seconds_left` are over (trials in flight end as stopped) or when it is interrupted (they
    stay open, and the next search goes on with them). Raises OSError where a trial or the record cannot be written;
    trials in flight stay open then too. A trial that does not get on for `hang_limit_s` is ended as if it had died.
    """
    trials = run.trainings("search")
    num_open = spec.search.num_trials - sum(trial.status is not None for trial in trials)
    if num_open <= 0:
        return
    watch = TrialWatch(hang_limit_s)
    ledger = _Ledger(spec, run, listener, seconds_left, _Suggested(spec, trials), RecordedASHA(spec.search), watch)
    _run_trials(ledger, data, num_open, num_concurrent)
    ledger.end_what_time_stopped()


def confirm(
    spec: JobSpec,
    run: RunDir,
    data: SharedData,
    planned: Sequence[Confirmation],
    num_concurrent: int,
    listener: TrialListener,
    hang_limit_s: float = HANG_LIMIT_S,
) -> None:
    """Train what is planned and has not ended on record, to the end: as `search`, without early stopping."""
    ended = {training.id for training in run.trainings("confirm") if training.status is not None}
    still_open = [plan for plan in planned if plan.id not in ended]
    if not still_open:
        return
    without_stopping = RecordedASHA(spec.search.model_copy(update={"early_stopping": None}))
    watch = TrialWatch(hang_limit_s)
    ledger = _Ledger(spec, run, listener, None, _Listed(still_open, run), without_stopping, watch)
    _run_trials(ledger, data, len(still_open), num_concurrent)


def _run_trials(ledger: "_Ledger", data: SharedData, num_open: int, num_concurrent: int) -> None:
    spec, stage = ledger.spec, ledger.trials.stage
    tuner = tune.Tuner(
        _trainable(spec.search, data, ledger.watch.inbox),
        tune_config=tune.TuneConfig(
            search_alg=_Suggestions(ledger),
            scheduler=ledger.scheduler,
            metric=spec.search.objective,
            mode=direction(spec.search)[:3],
            num_samples=num_open,
            max_concurrent_trials=num_concurrent,
            reuse_actors=True,
            time_budget_s=ledger.seconds_left,
        ),
        run_config=tune.RunConfig(
            name=f"{stage}-{uuid.uuid4().hex[:8]}",
            storage_path=str(ledger.run.ray_state),
            callbacks=[ledger],
            failure_config=tune.FailureConfig(max_failures=spec.max_failures),
            verbose=0,
        ),
    )
    _leave_credentials_to_nodes()
    try:
        with deaths_are_failures_of_one_trial():
            tuner.fit()
    finally:
        ledger.watch.close()


def _leave_credentials_to_nodes() -> None:
    """Tune gives its trials the driver's AWS keys as a runtime environment, and Ray writes those to each node's log."""
    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


def _trainable(search: Search, data: SharedData, inbox: Any) -> Any:
    function = tune.with_parameters(run_trial, data=data, settings=search, inbox=inbox)
    resources = {"cpu": search.cpus_per_trial, "gpu": search.gpus_per_trial}
    return tune.with_resources(function, resources)


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A training that Tune is to run next."""

    id: str
    config: dict[str, Any]
    known: dict[str, Any]  # what else goes on record when it is asked for


class _Trials(Protocol):
    """Where Tune's trials come from, and who hears how they ended."""

    stage: str

    def next(self) -> _Planned | None: ...

    def tell(self, training: Training) -> None: ...


class _Suggested:
    """The search: what Optuna suggests."""

    stage = "search"

    def __init__(self, spec: JobSpec, trials: list[Training]) -> None:
        self._spec = spec
        self._study = SearchStudy(spec, trials)

    def next(self) -> _Planned | None:
        number = self._study.num_asked
        if number >= self._spec.search.num_trials:
            return None
        hyperparameters = Hyperparameters(**{**self._spec.recipe.model_dump(), **self._study.suggest()})
        seed = seed_of_trial(self._spec.seed, number)
        config = self._spec.training(hyperparameters, self._spec.search.num_epochs, seed).model_dump()
        return _Planned(f"trial-{number:04d}", config, {"number": number})

    def tell(self, training: Training) -> None:
        self._study.tell(training)


class _Listed:
    """The confirmation: what is known beforehand."""

    stage = "confirm"

    def __init__(self, plans: Sequence[Confirmation], run: RunDir) -> None:
        self._plans = [plan for plan in plans if run.training(plan.id) is None]  # the ledger goes on with the others

    def next(self) -> _Planned | None:
        if not self._plans:
            return None
        plan = self._plans.pop(0)
        return _Planned(plan.id, plan.config, {"of": plan.trial.id})

    def tell(self, training: Training) -> None:
        pass


class _Ledger(tune.Callback):
    """Keeps the record, the source of trials and the early stopping in step with what Tune does."""

    def __init__(
        self,
        spec: JobSpec,
        run: RunDir,
        listener: TrialListener,
        seconds_left: float | None,
        trials: _Trials,
        scheduler: "RecordedASHA",
        watch: TrialWatch,
    ) -> None:
        self.spec = spec
        self.run = run
        self.seconds_left = seconds_left
        self.trials = trials
        self.scheduler = scheduler
        self.watch = watch
        self._hangs: dict[str, str] = {}  # why a trial's process was ended, until Tune has dealt with it
        self._fatal: OSError | TakenOverError | None = None
        self._listener = listener
        self._deadline = time.monotonic() + (float("inf") if seconds_left is None else seconds_left)
        recorded = run.trainings(trials.stage)
        self._unfinished = [training for training in recorded if training.status is None]
        self._in_flight: dict[str, Trial | None] = {}  # by training; Tune's trial once it has reported
        self.scheduler.replay(recorded)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is never used: the record is the truth

    def next_trial(self) -> dict[str, Any] | None:
        """The values for Tune's next trial: one that was interrupted, else a new one; None if there is none."""
        if self._unfinished:
            training = self._unfinished.pop(0)
            return self._values(training.id, training.config)
        planned = self.trials.next()
        if planned is None:
            return None
        self.run.record_asked(planned.id, self.trials.stage, planned.config, **planned.known)
        return self._values(planned.id, planned.config)

    def _values(self, training_id: str, config: dict[str, Any]) -> dict[str, Any]:
        self._in_flight[training_id] = None
        return {
            "training_id": training_id,
            "config": config,
            "checkpoints": str(self.run.checkpoints(training_id)),
            "generation": self.run.generation,
            "must_see": str(self.run.first_event),
        }

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Several times a second. Raises OSError, TakenOverError, which end the search."""
        if self._fatal is not None:
            raise self._fatal
        self._hangs |= self.watch.end_hanging(self._in_flight)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep an error until the step's end: Tune takes what other callbacks raise for failures of trials."""
        try:
            yield
        except (OSError, TakenOverError) as error:
            self._fatal = error

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        with self._writing():
            self._take_result(trial, result)

    def _take_result(self, trial: Trial, result: dict[str, Any]) -> None:
        self._in_flight[trial.config["training_id"]] = trial
        if DISK_TROUBLE in result:
            raise result[DISK_TROUBLE].to_error()
        if FAILURE not in result:
            row = {key: value for key, value in result.items() if _is_of_row(key)}
            self.run.record_epoch(trial.config["training_id"], row)
            self._listener.trial_epoch(trial.config["training_id"], row)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._writing():
            self._take_end(trial)

    def _take_end(self, trial: Trial) -> None:
        result = trial.last_result or {}
        epoch = result.get("epoch", 0)
        training_id = trial.config["training_id"]
        if FAILURE in result:
            self._end(training_id, trial.num_failures, "failed", result[FAILURE], result[TRACEBACK])
        elif epoch >= self.spec.search.num_epochs:
            self._end(training_id, trial.num_failures, "complete", None)
        elif trial.trial_id in self.scheduler.stopped:
            self._end(training_id, trial.num_failures, "pruned", f"among the worst at epoch {epoch}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        training_id = trial.config["training_id"]
        with self._writing():
            self._end(training_id, trial.num_failures, "failed", self._why_it_died(trial), _errors(trial))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._listener.note(f"{trial.config['training_id']} is started again: {self._why_it_died(trial)}")

    def _why_it_died(self, trial: Trial) -> str:
        hang = self._hangs.pop(trial.config["training_id"], None)
        return hang or why_it_died(_errors(trial))

    def end_what_time_stopped(self) -> None:
        """Tune says nothing of the trials that it stops as a whole. Those of an interrupted search stay open."""
        if time.monotonic() < self._deadline:
            return
        for training_id, trial in list(self._in_flight.items()):
            self._end(
                training_id, trial.num_failures if trial else 0, "stopped", f"max_hours {self.spec.max_hours} over"
            )

    def _end(
        self, training_id: str, num_failures: int, status: Status, reason: str | None, trace: str | None = None
    ) -> None:
        del self._in_flight[training_id]
        self.run.record_ended(
            training_id,
            status,
            reason,
            workers=1,
            threads=self.spec.search.cpus_per_trial,
            device=_device(self.spec.search),
            num_failures=num_failures,
            trace=trace,
        )
        training = self.run.training(training_id)
        assert training is not None
        self.trials.tell(training)
        self.run.remove_checkpoints(training_id)
        self._listener.trial_ended(training)


def _errors(trial: Trial) -> str:
    """What Tune has collected; `Trial.get_error` reads a copy, which lags behind."""
    return Path(trial.error_file).read_text() if trial.error_file else ""


def _is_of_row(key: str) -> bool:
    return key in ("epoch", "elapsed_s") or key.startswith(("train_", "val_"))


class _Suggestions(Searcher):
    """Tune's view of the ledger: the next trial's values, or that there is none left."""

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # the ledger knows them from the job spec

    def suggest(self, trial_id: str) -> Any:
        return self._ledger.next_trial() or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # the ledger hears of it as a callback, with the trial itself

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass  # nothing is restored from Ray's state

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("the run's record is what a search goes on from")


class RecordedASHA(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    It knows which trials it stopped, and can be brought to where the record says it was.
    """

    def __init__(self, search: Search) -> None:
        # Without early stopping the only rung is at the end, where a trial is complete whatever the rung says.
        rule = search.early_stopping or EarlyStopping(grace_epochs=search.num_epochs)
        super().__init__(
            time_attr="epoch",  # training_iteration begins again after a retry
            max_t=search.num_epochs,
            grace_period=rule.grace_epochs,
            reduction_factor=rule.reduction_factor,
            stop_last_trials=False,  # a trial at its last epoch ends by itself
        )
        self.set_search_properties(search.objective, direction(search)[:3])
        self.stopped: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        super().set_search_properties(metric, mode, **spec)
        return True  # Tune says them again

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if FAILURE in result or DISK_TROUBLE in result:
            return TrialScheduler.STOP  # and its missing score stays out of the rungs
        action: str = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self.stopped.add(trial.trial_id)
        return action

    def replay(self, trials: list[Training]) -> None:
        """Fill the rungs with the epochs of ended trials on record; open ones report theirs again themselves."""
        for training in trials:
            if training.status is not None:
                trial = _RecordedTrial(training.id)
                self.on_trial_add(None, trial)  # type: ignore[arg-type]
                for row in training.history:
                    self.on_trial_result(None, trial, row)


@dataclasses.dataclass(frozen=True)
class _RecordedTrial:
    """As much of a Tune trial as early stopping looks at."""

    trial_id: str
