"""The trial controller as Ray Tune takes it: a searcher, a scheduler and a callback, none of which decides anything."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mnist_ray.config import Search
from mnist_ray.pipeline.search import WAITING, TrialController
from mnist_ray.pipeline.tasks import Execution, Failure, TrainingTask
from mnist_ray.ray_backend.compat import errors_of, last_error
from mnist_ray.ray_backend.heartbeat import TrialMonitor
from mnist_ray.ray_backend.tune.trial import TASK, Report, device_of


def task_of(trial: Trial) -> TrainingTask:
    task: TrainingTask = trial.config[TASK]
    return task


class ControllerSearcher(Searcher):
    """Hands the controller's trials to Tune."""

    def __init__(self, controller: TrialController) -> None:
        super().__init__()
        self._controller = controller

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # the controller has them from the job spec

    def suggest(self, trial_id: str) -> Any:
        """Return a trial, None while the next one is not published, FINISHED after the last.

        With no trial in flight there is nothing else to look after, and Tune would ask again a second later only.
        """
        task = self._controller.next_task()
        while task is WAITING and not self._controller.in_flight:
            task = self._controller.next_task()
        if task is WAITING:
            return None
        return Searcher.FINISHED if task is None else {TASK: task}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: ControllerCallback passes the end on, with the trial itself."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for Tuner.restore, which is never used: the run's record is the truth

    def save(self, checkpoint_path: str | os.PathLike[str]) -> None:
        """Do nothing: a search goes on from the run's record."""

    def restore(self, checkpoint_path: str | os.PathLike[str]) -> None:
        raise NotImplementedError("a search goes on from the run's record")


class ControllerScheduler(FIFOScheduler):
    """Passes each epoch to the controller and stops the trials that the controller stops."""

    def __init__(self, controller: TrialController) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._controller = controller

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return STOP or CONTINUE. Tune repeats a trial's last result at its end."""
        report = Report.of(result)
        if report.metrics is None:
            return TrialScheduler.STOP
        goes_on = self._controller.on_epoch(task_of(trial).id, report.metrics)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def __getstate__(self) -> dict[str, Any]:
        return {}


class ControllerCallback(tune.Callback):
    """Passes ends and restarts to the controller, polls it, and kills trials that hang."""

    def __init__(
        self,
        controller: TrialController,
        settings: Search,
        monitor: TrialMonitor,
        when_nearly_over: Callable[[], None],
    ) -> None:
        """when_nearly_over: called once, when `controller.is_nearly_over`."""
        self._controller = controller
        self._when_nearly_over: Callable[[], None] | None = when_nearly_over
        self._settings = settings
        self._monitor = monitor
        self._trials: dict[str, Trial] = {}  # by training
        self._hangs: dict[str, str] = {}  # why a trial's process was killed, until Tune has dealt with it

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def execution(self, training_id: str) -> Execution:
        """Return how a trial in flight runs."""
        trial = self._trials.get(training_id)
        if trial is None:
            return Execution(1, self._settings.cpus_per_trial, device_of(self._settings), num_failures=0)
        return self._execution(trial)

    def _execution(self, trial: Trial) -> Execution:
        steps = Report.of(trial.last_result or {}).steps
        return Execution(1, self._settings.cpus_per_trial, device_of(self._settings), trial.num_failures, steps)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Poll several times a second. Raises OSError, TakenOverError, which end the search."""
        self._controller.poll()
        self._hangs |= self._monitor.kill_hanging(self._controller.in_flight)
        if self._when_nearly_over is not None and self._controller.is_nearly_over:
            self._when_nearly_over()
            self._when_nearly_over = None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._trials[task_of(trial).id] = trial

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        report = Report.of(trial.last_result or {})
        if report.storage_failure is not None:
            self._controller.on_storage_failure(report.storage_failure.to_error())
        else:
            self._controller.on_end(task_of(trial).id, self._execution(trial), report.failure)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        failure = Failure(self._reason(trial), errors_of(trial))
        self._controller.on_end(task_of(trial).id, self._execution(trial), failure)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._controller.on_restart(task_of(trial).id, self._reason(trial))

    def _reason(self, trial: Trial) -> str:
        return self._hangs.pop(task_of(trial).id, None) or last_error(errors_of(trial))


class SilentReporter(tune.ProgressReporter):
    """A reporter that reports nothing. Tune's own clears the output of a notebook's cell, whatever its verbosity is."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        """Do nothing; Tune calls this only where `should_report` says so."""
