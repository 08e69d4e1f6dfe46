"""The adapters between the trial controller and Ray Tune, without a cluster."""

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from mnist_ray.config import Search, StepMode, TrainingConfig
from mnist_ray.errors import TakenOverError
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.pipeline.execution import TrialEnd
from mnist_ray.pipeline.search import WAITING, Waiting
from mnist_ray.pipeline.tasks import Execution, Failure, TrainingTask
from mnist_ray.ray_backend.tune import adapters
from mnist_ray.ray_backend.tune.adapters import ControllerCallback, ControllerScheduler, ControllerSearcher
from mnist_ray.ray_backend.tune.trial import Report, end_to_report
from mnist_ray.storage.failures import StorageFailure

METRICS = EpochMetrics(3, 1.5, Score(0.1234567890123456789, 47, 50), Score(1 / 3, 8, 10))
FULL = StorageFailure(28, "No space left on device", "/run/checkpoints")


class Controller:
    """A trial controller that keeps the calls it gets."""

    def __init__(self, *tasks: TrainingTask | Waiting | None) -> None:
        self.in_flight: set[str] = set()
        self.is_nearly_over = False
        self.goes_on = True
        self.failure: Exception | None = None
        self.epochs: list[EpochMetrics] = []
        self.ends: list[tuple[str, Execution, Failure | None]] = []
        self.restarts: list[tuple[str, str]] = []
        self.storage_failures: list[OSError] = []
        self._tasks = list(tasks)

    def next_task(self) -> TrainingTask | Waiting | None:
        return self._tasks.pop(0)

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> bool:
        self.epochs.append(metrics)
        return self.goes_on

    def on_end(self, training_id: str, execution: Execution, failure: Failure | None = None) -> None:
        self.ends.append((training_id, execution, failure))

    def on_restart(self, training_id: str, reason: str) -> None:
        self.restarts.append((training_id, reason))

    def on_storage_failure(self, error: OSError) -> None:
        self.storage_failures.append(error)

    def poll(self) -> None:
        if self.failure is not None:
            raise self.failure


class Monitor:
    """A monitor that has killed what a test says."""

    def __init__(self) -> None:
        self.killed: dict[str, str] = {}

    def kill_hanging(self, in_flight: set[str]) -> dict[str, str]:
        return self.killed


def task(training_id: str = "trial-0000") -> TrainingTask:
    config = TrainingConfig(learning_rate=0.001, dropout=0.25, batch_size=50, num_epochs=5, seed=0)
    return TrainingTask(training_id, config, "checkpoints", 1, "sentinel")


def trial(last_result: dict[str, Any] | None = None, num_failures: int = 0) -> Any:
    return SimpleNamespace(config={"task": task()}, last_result=last_result, num_failures=num_failures, error_file=None)


def result(metrics: EpochMetrics, steps: StepMode | None = "eager") -> dict[str, Any]:
    """A report as Tune passes it on."""
    return {**metrics.columns(), "steps": steps, "done": False, "time_total_s": 3.0, "config": {}}


def callback(
    controller: Controller, monitor: Monitor | None = None, when_nearly_over: Callable[[], None] = lambda: None
) -> ControllerCallback:
    return ControllerCallback(controller, Search(), monitor or Monitor(), when_nearly_over)  # type: ignore[arg-type]


def searcher(controller: Controller) -> ControllerSearcher:
    return ControllerSearcher(controller)  # type: ignore[arg-type]


def test_end_of_a_stage_is_announced_once() -> None:
    calls: list[str] = []
    controller = Controller()
    followed = callback(controller, when_nearly_over=lambda: calls.append("nearly over"))
    followed.on_step_end(0, [])
    assert not calls
    controller.is_nearly_over = True
    for iteration in (1, 2):
        followed.on_step_end(iteration, [])
    assert calls == ["nearly over"]


def test_report_keeps_every_digit() -> None:
    assert Report.of(result(METRICS)) == Report(METRICS, None, None, "eager")


def test_failure_report_has_no_metrics() -> None:
    failure = Failure("diverged", "trace")
    report = Report.of(end_to_report(TrialEnd(failure, steps="captured")))
    assert report == Report(None, failure, None, "captured")


def test_suggestions_are_the_controllers_tasks() -> None:
    suggest = searcher(Controller(task(), None)).suggest
    assert [suggest("a"), suggest("b")] == [{"task": task()}, Searcher.FINISHED]


def test_waiting_leaves_tune_to_its_other_trials() -> None:
    controller = Controller(WAITING, task("trial-0001"))
    controller.in_flight = {"trial-0000"}
    suggest = searcher(controller).suggest
    assert [suggest("a"), suggest("a")] == [None, {"task": task("trial-0001")}]


def test_waiting_with_nothing_in_flight_waits() -> None:
    assert searcher(Controller(WAITING, WAITING, task())).suggest("a") == {"task": task()}


@pytest.mark.parametrize(("goes_on", "decision"), [(True, TrialScheduler.CONTINUE), (False, TrialScheduler.STOP)])
def test_controller_decides_on_epochs(goes_on: bool, decision: str) -> None:
    controller = Controller()
    controller.goes_on = goes_on
    scheduler = ControllerScheduler(controller)  # type: ignore[arg-type]
    assert scheduler.on_trial_result(None, trial(), result(METRICS)) == decision
    assert controller.epochs == [METRICS]


def test_failure_stops_without_an_epoch() -> None:
    controller = Controller()
    scheduler = ControllerScheduler(controller)  # type: ignore[arg-type]
    last = end_to_report(TrialEnd(Failure("diverged")))
    assert scheduler.on_trial_result(None, trial(), last) == TrialScheduler.STOP
    assert controller.epochs == []


def test_end_has_steps_and_failures() -> None:
    controller = Controller()
    callback(controller).on_trial_complete(0, [], trial(result(METRICS, "captured"), num_failures=2))
    assert controller.ends == [("trial-0000", Execution(1, 1, "cpu", 2, "captured"), None)]


def test_execution_of_trials_in_flight() -> None:
    follower = callback(Controller())
    follower.on_trial_start(0, [], trial(result(METRICS, "eager"), num_failures=1))
    assert follower.execution("trial-0000") == Execution(1, 1, "cpu", 1, "eager")
    assert follower.execution("trial-0001") == Execution(1, 1, "cpu", 0)


def test_reported_failure_is_the_end() -> None:
    controller = Controller()
    failure = Failure("diverged", "trace")
    callback(controller).on_trial_complete(0, [], trial(end_to_report(TrialEnd(failure))))
    assert [end[2] for end in controller.ends] == [failure]


def test_storage_failure_leaves_the_trial_open() -> None:
    controller = Controller()
    callback(controller).on_trial_complete(0, [], trial(end_to_report(TrialEnd(storage_failure=FULL))))
    assert controller.ends == []
    (error,) = controller.storage_failures
    assert (error.errno, error.filename) == (FULL.number, FULL.path)


def test_lost_process_fails_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = "Failure # 1 (occurred at 9:00)\nThe actor died."
    monkeypatch.setattr(adapters, "errors_of", lambda trial: errors)
    controller = Controller()
    callback(controller).on_trial_error(0, [], trial(num_failures=1))
    ((training_id, execution, failure),) = controller.ends
    assert (training_id, execution.num_failures) == ("trial-0000", 1)
    assert failure == Failure("its process died: The actor died.", errors)


def test_killed_trial_restarts_with_where_it_hung() -> None:
    controller, monitor = Controller(), Monitor()
    follower = callback(controller, monitor)
    monitor.killed = {"trial-0000": "trial-0000 (process 1 on host) has made no progress for 120 s"}
    follower.on_step_end(0, [])
    monitor.killed = {}
    follower.on_trial_recover(0, [], trial())
    follower.on_trial_recover(0, [], trial())
    reasons = [reason for _, reason in controller.restarts]
    assert reasons[0].startswith("trial-0000 (process 1 on host)")
    assert reasons[1].startswith("its process died")


def test_error_of_the_record_ends_the_search() -> None:
    controller = Controller()
    controller.failure = TakenOverError("taken over")
    with pytest.raises(TakenOverError):
        callback(controller).on_step_end(0, [])


def test_adapters_pickle_without_the_controller() -> None:
    """Tune pickles them for a restore that is never used."""
    controller = Controller()
    parts = [searcher(controller), ControllerScheduler(controller), callback(controller)]  # type: ignore[arg-type]
    assert all(len(pickle.dumps(part)) < 300 for part in parts)
