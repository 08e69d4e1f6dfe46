"""Jobs on the local backend: results, interruptions, retries, budgets, callbacks; and that nothing of Ray is there."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mnist_ray import Callback, LocalBackend, RunDir, SpecError, run_job, search_job, train_job
from mnist_ray.callbacks import TrainingInfo, TrainingOutcome
from mnist_ray.cli.main import main
from mnist_ray.config import JobSpec
from mnist_ray.errors import TrainingFailedError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.record.event_log import EventLog
from mnist_ray.record.events import EpochReported, TrainingEnded
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from tests.small_job import STAGES, Blocking, Remembering, TimeUp, essence, save_every_epoch, small_spec, use_few_images

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)
    save_every_epoch(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        return run_job(small_spec(tmp_path_factory.mktemp("undisturbed")), LocalBackend())


def interrupt_at_checkpoint(patch: pytest.MonkeyPatch, training_id: str, epoch: int, num_workers: int = 1) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does, once that epoch's checkpoint is written."""
    write = Checkpoints.save

    def save(checkpoints: Checkpoints, saved: SavedState) -> None:
        write(checkpoints, replace(saved, num_workers=num_workers))
        if checkpoints._folder.parent.name.startswith(training_id) and saved.completed_epochs == epoch:
            raise KeyboardInterrupt

    patch.setattr(Checkpoints, "save", save)


def recorded_epochs(run: RunDir, training_id: str) -> list[int]:
    events = [numbered.event for numbered in EventLog(run.paths.record).read_new()]
    return [event.metrics.epoch for event in events if isinstance(event, EpochReported) and event.id == training_id]


# --- results -----------------------------------------------------------------------------------------------------


def test_every_training_ends_complete(undisturbed: RunDir) -> None:
    state = undisturbed.state
    assert state.tested is not None
    assert {trial.status for trial in state.trainings("search")} <= {"complete", "pruned"}
    assert [training.status for training in state.trainings("retrain")] == ["complete"] * 2
    assert state.started is not None and state.started.cluster.backend == "local"
    assert all(training.ended and training.ended.workers == 1 for training in state.trainings("retrain"))


def test_finished_run_is_not_repeated(undisturbed: RunDir) -> None:
    before = essence(undisturbed.path), undisturbed.state.num_events
    run = run_job(small_spec(undisturbed.path.parent), LocalBackend())
    assert (essence(run.path), run.state.num_events) == before


@pytest.mark.parametrize("training_id", ["trial-0000", "final", "retrain"])
def test_interrupted_run_ends_the_same(
    undisturbed: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training_id: str
) -> None:
    spec = small_spec(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_at_checkpoint(patch, training_id, epoch=1)
        with pytest.raises(KeyboardInterrupt):
            run_job(spec, LocalBackend())
    stopped = RunDir(tmp_path / "small")
    assert stopped.paths.results_csv.is_file()
    (open_one,) = [folder.name for folder in stopped.paths.all_checkpoints.iterdir()]
    assert not stopped.state.has_ended(open_one)
    run = run_job(spec, LocalBackend())
    assert essence(run.path) == essence(undisturbed.path)
    assert recorded_epochs(run, open_one) == [1, 2]


def test_failing_trials_are_recorded(tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path,
        search__space={"learning_rate": {"choices": [0.0003, 1e30]}},
        search__num_trials=6,
        search__early_stopping=None,
        final=None,
        seed=3,
    )
    blocked = tmp_path / "small" / "checkpoints" / "trial-0000"
    run = search_job(spec, LocalBackend(), callbacks=[Blocking(blocked)])
    raised, *others = run.state.trainings("search")
    diverged = [trial for trial in others if trial.config.learning_rate == 1e30]
    assert diverged and all(trial.status == "failed" and "diverged" in str(trial.reason) for trial in diverged)
    assert raised.status == "failed"
    log = run.paths.training_log(raised.id).read_text()
    assert "Traceback" in log and str(blocked) in log
    selected = run.state.selected
    assert selected is not None
    assert selected.training not in {trial.id for trial in [raised, *diverged]}


def test_failure_of_all_trials_is_said(tmp_path: Path) -> None:
    space = {"learning_rate": {"choices": [1e30, 1e31]}}
    spec = small_spec(tmp_path, search__space=space, search__num_trials=2, recipe__learning_rate=1e30)
    with pytest.raises(TrainingFailedError, match=r"all 2 trials.*diverged.*log: "):
        run_job(spec, LocalBackend())


# --- several workers ---------------------------------------------------------------------------------------------


def test_several_workers_become_one(undisturbed: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mnist_ray")
    run = run_job(small_spec(tmp_path, retrain__workers=2), LocalBackend())
    (line,) = [text for text in caplog.messages if "retrain.workers" in text]
    assert line.startswith("retrain.workers is 2, but without Ray there is 1")
    assert all(training.ended and training.ended.workers == 1 for training in run.state.trainings("retrain"))
    assert essence(run.path) == essence(undisturbed.path)


def test_retraining_of_two_workers_begins_again(
    undisturbed: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(tmp_path, retrain__workers=2)
    with monkeypatch.context() as patch:
        interrupt_at_checkpoint(patch, "retrain", epoch=2, num_workers=2)
        with pytest.raises(KeyboardInterrupt):
            run_job(spec, LocalBackend())
    (open_one,) = [folder.name for folder in RunDir(tmp_path / "small").paths.all_checkpoints.iterdir()]
    before = RunDir(tmp_path / "small").state.training(open_one)
    run = run_job(spec, LocalBackend())
    after = run.state.training(open_one)
    assert before is not None and after is not None
    assert before.history and after.history[0].elapsed_s != before.history[0].elapsed_s, "trained again"
    assert essence(run.path) == essence(undisturbed.path)


# --- retries -----------------------------------------------------------------------------------------------------


def fail_at_checkpoints(patch: pytest.MonkeyPatch, training_id: str, times: int) -> None:
    """Raise after each checkpoint of the training's first epoch, so many times."""
    write = Checkpoints.save
    left = Counter({training_id: times})

    def save(checkpoints: Checkpoints, saved: SavedState) -> None:
        write(checkpoints, saved)
        if checkpoints._folder.parent.name.startswith(training_id) and left[training_id] > 0:
            left[training_id] -= 1
            raise RuntimeError("it broke")

    patch.setattr(Checkpoints, "save", save)


def test_failed_retraining_is_started_again(
    undisturbed: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mnist_ray")
    fail_at_checkpoints(monkeypatch, "retrain", times=2)
    run = run_job(small_spec(tmp_path, max_failures=2), LocalBackend())
    first, second = run.state.trainings("retrain")
    counts = [training.ended.num_failures for training in (first, second) if training.ended]
    assert sorted(counts) == [0, 2]
    assert sum("RuntimeError: it broke: starting it again" in text for text in caplog.messages) == 2
    assert essence(run.path) == essence(undisturbed.path), "it went on from its checkpoints"


def test_too_many_failures_end_the_retraining(
    undisturbed: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(tmp_path, max_failures=1)
    with monkeypatch.context() as patch:
        fail_at_checkpoints(patch, "retrain", times=9)
        with pytest.raises(
            TrainingFailedError, match=r"the retraining failed: retrain-.*it broke \(log: .*retrain\.log"
        ):
            run_job(spec, LocalBackend())
    run = RunDir(tmp_path / "small")
    assert run.state.retraining_failed is not None
    assert "Traceback" in run.paths.retraining_log.read_text()
    assert essence(run_job(spec, LocalBackend()).path) == essence(undisturbed.path)


# --- time --------------------------------------------------------------------------------------------------------


def test_time_budget_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_spec(
        tmp_path,
        search__num_trials=500,
        search__num_epochs=4,
        search__early_stopping={"grace_epochs": 1, "reduction_factor": 2},
        final=None,
        max_hours=1,
    )
    run = run_job(spec, LocalBackend(), [TimeUp(monkeypatch)])
    ended = run.state.search_ended
    assert ended is not None and ended.out_of_time
    trials = run.state.trainings("search")
    assert 2 <= len(trials) < 500
    assert {trial.status for trial in trials} <= {"complete", "pruned", "stopped"}
    assert run.state.tested is not None


# --- callbacks ---------------------------------------------------------------------------------------------------


class Broken(Callback):
    """Raises in its first method that is called."""

    def __init__(self) -> None:
        self.num_calls = 0

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        self.num_calls += 1
        raise ValueError("a tracker that is out of reach")


def test_broken_callback_is_dropped(undisturbed: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, other = Broken(), Remembering()
    run = run_job(small_spec(tmp_path), LocalBackend(), [broken, other], progress=False)
    assert broken.num_calls == 1
    (warning,) = [record for record in caplog.records if "callback" in record.getMessage()]
    assert warning.levelno == logging.WARNING and "Broken failed in on_epoch" in warning.getMessage()
    assert essence(run.path) == essence(undisturbed.path)
    labels = {training.label for training, _ in other.epochs}
    assert {"trial-0000", "recipe, seed 1 of 1", "selected, seed 1 of 1", "baseline, seed 1 of 1"} <= labels
    assert len(other.epochs) == sum(training.epochs_done for stage in STAGES for training in run.state.trainings(stage))


class Checking(Callback):
    """Looks on the disk whether what it gets is published."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.num_published: Counter[bool] = Counter()

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        self._check(
            lambda event: isinstance(event, EpochReported) and (event.id, event.metrics) == (training.id, metrics)
        )

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        self._check(
            lambda event: isinstance(event, TrainingEnded) and (event.id, event.status) == (training.id, outcome.status)
        )

    def _check(self, is_it: Callable[[object], bool]) -> None:
        events = [numbered.event for numbered in EventLog(self._run / "record").read_new()]
        self.num_published[any(map(is_it, events))] += 1


def test_callbacks_get_published_events_only(tmp_path: Path) -> None:
    checking = Checking(tmp_path / "small")
    run_job(small_spec(tmp_path), LocalBackend(), [checking])
    assert set(checking.num_published) == {True}


def test_callbacks_get_roles_and_stages(tmp_path: Path) -> None:
    remembering = Remembering()
    run_job(small_spec(tmp_path), LocalBackend(), [remembering])
    assert remembering.stages == [
        "search: 0 of 3 trials",
        "final: 0 of 2 trainings",
        "retrain: 0 of 4 epochs",
        "test: 0 of 2 models",
    ]
    roles = {training.id: training.role for training, _ in remembering.ends}
    assert set(roles.values()) == {None, "selected", "baseline"}
    assert all(outcome.last and outcome.last.epoch == outcome.epochs_done for _, outcome in remembering.ends)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_gpu_without_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        SpecError, match=r"search\.gpus_per_trial 1: torch finds no GPU .*--set search\.gpus_per_trial=0"
    ):
        run_job(small_spec(tmp_path, search__gpus_per_trial=1.0), LocalBackend())
    assert not RunDir(tmp_path / "small").exists


def test_address_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = written(small_spec(tmp_path), tmp_path)
    assert main(["run", str(spec), "--local", "--address", "127.0.0.1:6379"]) == 2
    assert "--local --address 127.0.0.1:6379" in capsys.readouterr().err


def written(spec: JobSpec, folder: Path) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return path


# --- the command -------------------------------------------------------------------------------------------------

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
from mnist_ray.cli.main import main
code = main(sys.argv[1:])
print("ray is imported" if "ray" in sys.modules else "no ray")
sys.exit(code)
"""


def start(spec: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", str(spec), "--local"],
        cwd=spec.parent,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": "127.0.0.1:1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(900)
def test_command_stops_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM in the search, Ctrl-C in the retraining, then the end; none of the sessions imports Ray."""
    search = {"search__num_trials": 2, "search__num_epochs": 6, "search__early_stopping": None, "final": None}
    spec = small_spec(tmp_path, **search, data__num_validation=1200, retrain__num_epochs=10, retrain__baseline=False)
    run = RunDir(tmp_path / "small")
    path = written(spec, tmp_path)
    for stage, number in (("search", signal.SIGTERM), ("retrain", signal.SIGINT)):
        with start(path) as process:
            deadline = time.monotonic() + 240
            while not any(training.epochs_done for training in run.state.trainings(stage)):  # type: ignore[arg-type]
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
            printed, _ = process.communicate(timeout=60)
        assert process.returncode == 5, printed
        assert "run the same command again" in printed and "Traceback" not in printed
        assert "no ray" in printed
        assert run.paths.results_csv.is_file()
    with start(path) as process:
        printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "no ray" in printed
    assert [training.epochs_done for training in run.state.trainings("search")] == [6, 6]
    for training in run.state.trainings("retrain"):
        assert [metrics.epoch for metrics in training.history] == list(range(1, 11))


def test_importing_the_backend_imports_no_ray() -> None:
    program = (
        "import sys, mnist_ray.pipeline.local_backend; from mnist_ray import run_job; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False, timeout=120).returncode == 0


def test_baseline_alone_is_trained(tmp_path: Path) -> None:
    run = train_job(small_spec(tmp_path), LocalBackend())
    (trained,) = run.state.trainings("retrain")
    assert trained.id == "train-recipe-seed-0" and trained.status == "complete"
    assert run.state.tested is not None and list(run.state.tested.scores) == [trained.id]
