"""The controller of a search: what it publishes before a backend gets a trial, and what it makes of reports."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.errors import TakenOverError
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.pipeline import search
from mnist_ray.pipeline.early_stopping import SuccessiveHalving
from mnist_ray.pipeline.search import WAITING, SuggestedTrials, TrialController
from mnist_ray.pipeline.spent_checkpoints import spent_checkpoints_removed
from mnist_ray.pipeline.tasks import Execution, Failure, TrainingTask
from mnist_ray.record.event_log import EventLog
from mnist_ray.record.events import EpochReported, RunTaken
from mnist_ray.record.lease import owned
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from tests.small_job import small_spec

HERE = Execution(workers=1, threads=1, device="cpu", num_failures=0)


def epoch(number: int, loss: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, 0.1, Score(loss, 40, 60), Score(loss, 20, 30))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    with owned(RunDir(tmp_path / "small"), when_lost=lambda: None) as writer:
        yield writer


def controller_of(writer: RunWriter, num_concurrent: int = 1, seconds_left: float | None = None) -> TrialController:
    spec = small_spec(writer.run.path.parent, search__num_trials=6)
    suggested = SuggestedTrials(spec, writer.run.state.trainings("search"))
    return TrialController(spec, writer, suggested, SuccessiveHalving(spec, 60), num_concurrent, seconds_left)


def next_task(controller: TrialController) -> TrainingTask:
    task = controller.next_task(timeout_s=20)
    assert isinstance(task, TrainingTask)
    return task


def published(writer: RunWriter) -> RunDir:
    """The run as another process reads it."""
    return RunDir(writer.run.path)


# --- publication -------------------------------------------------------------------------------------------------


def test_new_trial_is_published_first(writer: RunWriter) -> None:
    controller = controller_of(writer)
    with writer.run.lock:  # the writer's thread cannot publish meanwhile
        assert controller.next_task(timeout_s=0.05) is WAITING
        assert controller.in_flight == set()
    task = next_task(controller)
    assert published(writer).state.training(task.id) is not None
    assert controller.in_flight == {task.id}


def test_free_slots_share_one_publication(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CREATE_S", 60.0)  # however slow this machine suggests
    controller = controller_of(writer, num_concurrent=4)
    before = writer.run.log.num_files
    tasks = [next_task(controller) for _ in range(4)]
    assert [task.id for task in tasks] == ["trial-0000", "trial-0001", "trial-0002", "trial-0003"]
    assert writer.run.log.num_files == before + 1


def test_end_and_next_trial_share_one_publication(writer: RunWriter) -> None:
    controller = controller_of(writer)
    task = next_task(controller)
    before = writer.run.log.num_files
    with writer.run.lock:
        for number in (1, 2):
            controller.on_epoch(task.id, epoch(number))
        controller.on_end(task.id, HERE)
        assert controller.next_task(timeout_s=0.0) is WAITING
        time.sleep(0.05)
        assert published(writer).log.read_new()[-1].number == writer.run.num_published
    next_task(controller)
    assert writer.run.log.num_files - before <= 2  # the epochs may have gone before
    state = published(writer).state
    assert state.has_ended(task.id) and len(state.trainings("search")) == 2


def test_epochs_never_wait(writer: RunWriter) -> None:
    controller = controller_of(writer, num_concurrent=3)
    tasks = [next_task(controller) for _ in range(3)]
    with writer.run.lock:
        decisions = [
            controller.on_epoch(task.id, epoch(1, loss)) for task, loss in zip(tasks, (0.3, 0.2, 0.9), strict=True)
        ]
        state = published(writer).state
    assert decisions == [True, True, False], "decided on what was reported"
    assert sum(trial.epochs_done for trial in state.trainings("search")) == 0, "and nothing of it was published"


def test_repeated_epoch_is_recorded_once(writer: RunWriter) -> None:
    controller = controller_of(writer)
    task = next_task(controller)
    for number in (1, 1, 2, 1, 2):
        controller.on_epoch(task.id, epoch(number))
    writer.flush()
    events = [numbered.event for numbered in EventLog(writer.run.paths.record).read_new()]
    assert [event.metrics.epoch for event in events if isinstance(event, EpochReported)] == [1, 2]


def test_checkpoints_outlive_an_unpublished_end(writer: RunWriter) -> None:
    controller = controller_of(writer)
    task = next_task(controller)
    checkpoint = Path(task.checkpoints) / "000001" / "epoch-0002"
    checkpoint.mkdir(parents=True)
    for number in (1, 2):
        controller.on_epoch(task.id, epoch(number))
    with spent_checkpoints_removed(writer):
        with writer.run.lock:
            controller.on_end(task.id, HERE)
            controller.poll()
            assert checkpoint.exists()
        writer.flush()
    assert not checkpoint.exists()


def test_stage_is_nearly_over_once_no_slot_gets_two_more_trials(writer: RunWriter) -> None:
    """And only when a trial has reported: in a short stage its own first trials are still starting before that."""
    controller = controller_of(writer, num_concurrent=2)
    tasks, known = [], []
    for _ in range(5):  # of six
        tasks.append(next_task(controller))
        known.append(controller.is_nearly_over)
    assert known == [False] * 5
    controller.on_epoch(tasks[0].id, epoch(1))
    assert controller.is_nearly_over
    busy = controller_of(writer, num_concurrent=2)  # five are interrupted, and one is new
    busy.on_epoch(tasks[0].id, epoch(1))
    assert not busy.is_nearly_over


# --- ends --------------------------------------------------------------------------------------------------------


def test_ends_follow_from_the_reports(writer: RunWriter) -> None:
    controller = controller_of(writer, num_concurrent=4)
    complete, pruned, failed, interrupted = [next_task(controller).id for _ in range(4)]
    for number in (1, 2):
        assert controller.on_epoch(complete, epoch(number, 0.2))
    assert not controller.on_epoch(pruned, epoch(1, 0.9))
    controller.on_end(complete, HERE)
    controller.on_end(pruned, HERE)
    controller.on_end(failed, HERE, Failure("it broke", "the trace"))
    controller.on_end(interrupted, HERE)
    writer.flush()
    state = published(writer).state
    statuses = {trial.id: trial.status for trial in state.trainings("search")}
    assert statuses == {complete: "complete", pruned: "pruned", failed: "failed", interrupted: None}
    assert controller.in_flight == {interrupted}


def test_time_budget_stops_open_trials(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also trials of an earlier session, and trials that were created for slots that time did not allow for."""
    monkeypatch.setattr(search, "CREATE_S", 60.0)  # however slow the machine, both new trials are created at once
    earlier = controller_of(writer, num_concurrent=2)
    for _ in range(2):
        next_task(earlier)
    controller = controller_of(writer, num_concurrent=4, seconds_left=0.5)
    for _ in range(3):
        next_task(controller)  # both that were interrupted, and a new one with one more on record
    time.sleep(0.6)
    assert controller.next_task() is None
    controller.stop_what_is_left(lambda training_id: HERE)
    writer.flush()
    trials = published(writer).state.trainings("search")
    assert [trial.status for trial in trials] == ["stopped"] * len(trials)
    assert len(trials) == 4


def test_interrupted_trials_stay_open(writer: RunWriter) -> None:
    controller = controller_of(writer)
    task = next_task(controller)
    controller.on_epoch(task.id, epoch(1))
    controller.stop_what_is_left(lambda training_id: HERE)
    writer.flush()
    assert not published(writer).state.has_ended(task.id)
    assert next_task(controller_of(writer)).id == task.id, "and come first in the next session"


def test_next_session_decides_the_same(writer: RunWriter) -> None:
    """Also on trials that were judged before better ones came, and on one whose end was not recorded."""
    controller = controller_of(writer, num_concurrent=5)
    ids = [next_task(controller).id for _ in range(5)]
    losses = [0.9, 0.5, 0.3, 0.2, 0.95]
    decisions = [controller.on_epoch(each, epoch(1, loss)) for each, loss in zip(ids, losses, strict=True)]
    assert decisions == [True, True, True, True, False]
    writer.flush()
    later = controller_of(writer, num_concurrent=5)
    assert [next_task(later).id for _ in range(5)] == ids
    again = {each: later.on_epoch(each, epoch(1, loss)) for each, loss in zip(ids[::-1], losses[::-1], strict=True)}
    assert [again[each] for each in ids] == decisions


def test_fixed_trials_are_not_stopped(writer: RunWriter) -> None:
    controller = controller_of(writer, num_concurrent=4)
    recipe, *others = [next_task(controller).id for _ in range(4)]
    for other in others:
        controller.on_epoch(other, epoch(1, 0.1))
    assert controller.on_epoch(recipe, epoch(1, 9.0))


# --- errors ------------------------------------------------------------------------------------------------------


def raised_by_poll(controller: TrialController) -> Exception:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            controller.poll()
        except (OSError, TakenOverError) as error:
            return error
        time.sleep(0.02)
    raise AssertionError("poll raised nothing")


def test_poll_raises_takeover(writer: RunWriter) -> None:
    controller = controller_of(writer)
    task = next_task(controller)
    other = RunDir(writer.run.path)
    assert other.state.session is not None
    RunWriter(other, RunTaken(format=5, version="0", host="elsewhere", process=this_process())).close()
    controller.on_epoch(task.id, epoch(1))
    assert isinstance(raised_by_poll(controller), TakenOverError)
    controller.on_epoch(task.id, epoch(2))
    controller.on_end(task.id, HERE)
    assert controller.next_task() is None
    assert controller.is_over()
    assert published(writer).state.trainings("search")[0].history == []


def test_poll_raises_disk_errors(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = controller_of(writer)
    task = next_task(controller)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "the record")

    monkeypatch.setattr(EventLog, "add", fail)
    controller.on_epoch(task.id, epoch(1))
    error = raised_by_poll(controller)
    assert isinstance(error, OSError) and error.errno == 28
    controller.on_end(task.id, HERE)
    assert controller.next_task() is None


def test_storage_failure_ends_the_search(writer: RunWriter) -> None:
    controller = controller_of(writer)
    next_task(controller)
    controller.on_storage_failure(OSError(28, "No space left on device", "a checkpoint"))
    assert controller.next_task() is None
    assert controller.is_over()
    with pytest.raises(OSError, match="No space left"):
        controller.poll()
