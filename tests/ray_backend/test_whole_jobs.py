"""Whole jobs on a real Ray cluster, small: digits, few trials, few epochs; and the same jobs on the local backend."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray import (
    Callback,
    JobSpec,
    LocalBackend,
    RayBackend,
    RunDir,
    SpecError,
    read_results,
    run_job,
    search_job,
    train_job,
)
from mnist_ray.callbacks import TrainingInfo, TrainingOutcome
from mnist_ray.errors import TrainingFailedError
from mnist_ray.pipeline.prediction import Prediction, predict_images
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from tests.ray_head import Head, descendants
from tests.small_job import Blocking, Remembering, TimeUp, essence, save_every_epoch, small_spec, use_few_images

NOWHERE = RayBackend(address="127.0.0.1:1")  # joining it fails


def ray_spec(storage: Path, **changes: Any) -> JobSpec:
    """Return a spec for all digits and two workers."""
    given = {
        "data__num_validation": 180,
        "search__num_trials": 3,
        "search__num_epochs": 3,
        "search__max_concurrent_trials": None,
        "final": None,
        "retrain__num_epochs": 3,
        "retrain__workers": 2,
    }
    return small_spec(storage, **(given | changes))


# --- one whole job -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(head: Head, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    spec = ray_spec(
        tmp_path_factory.mktemp("finished"), final={"top_k": 1, "seeds": 1, "num_epochs": 2, "keep_recipe_within_se": 0}
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        return run_job(spec, RayBackend(head.address))


def test_ray_runs_the_whole_job(finished: RunDir) -> None:
    table = read_results(finished.paths.results_csv)
    trials, retrained = table[table["stage"] == "search"], table[table["stage"] == "retrain"]
    assert len(trials) == 3 and set(trials["status"]) <= {"complete", "pruned"}
    assert (trials["train_examples"] == 1257).all()
    assert len(table[table["role"] == "finalist"]) == 2
    assert (retrained["train_examples"] == 1437).all()
    assert (retrained["test_examples"] == 360).all()
    assert (retrained["epochs_done"] == 3).all()
    assert (retrained["workers"] == 2).all()
    started = finished.state.started
    assert started is not None and started.cluster.backend == "ray"


def test_models_predict_image_files(finished: RunDir, tmp_path: Path) -> None:
    from PIL import Image

    from mnist_ray import data

    examples = data.load_training("digits", Path())
    paths = []
    for index in range(20):
        paths.append(tmp_path / f"{index}.png")
        image = examples.images[index, 0]
        Image.fromarray(image if index % 2 else 255 - image).save(paths[-1])  # both polarities
    predicted = np.array(
        [answer.ranking[0] for answer in predict_images(finished, paths) if isinstance(answer, Prediction)]
    )
    assert (predicted == examples.labels[:20]).mean() > 0.7


# --- the same as a local run -------------------------------------------------------------------------------------


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        return run_job(small_spec(tmp_path_factory.mktemp("local")), LocalBackend())


def test_ray_and_local_runs_are_equal(local: RunDir, joined: str, few_images: None, tmp_path: Path) -> None:
    run = run_job(small_spec(tmp_path), RayBackend(joined))
    assert essence(run.path) == essence(local.path)


@pytest.mark.parametrize("training_id", ["trial-0001", "retrain"])
def test_ray_goes_on_with_a_local_run(
    local: RunDir, joined: str, few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training_id: str
) -> None:
    """The local session is interrupted after the first epoch's checkpoint; the epoch's time shows that it is used."""
    write = Checkpoints.save
    saved: list[SavedState] = []

    def save(checkpoints: Checkpoints, state: SavedState) -> None:
        write(checkpoints, state)
        if checkpoints._folder.parent.name.startswith(training_id):
            saved.append(state)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        save_every_epoch(patch)
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run_job(small_spec(tmp_path), LocalBackend())
    (open_one,) = [folder.name for folder in RunDir(tmp_path / "small").paths.all_checkpoints.iterdir()]
    run = run_job(small_spec(tmp_path), RayBackend(joined))
    training = run.state.training(open_one)
    assert training is not None and training.history[:1] == saved[0].history[:1]
    assert essence(run.path) == essence(local.path)


class InterruptsOnce(Callback):
    """Interrupts the run, as Ctrl-C does, once a checkpoint lies in a training's folder and epochs are published."""

    def __init__(self, run: Path, training_id: str) -> None:
        self._run, self._training_id = run, training_id
        self.interrupted: str | None = None

    def on_epoch(self, training: TrainingInfo, metrics: Any) -> None:
        folder = self._run / "checkpoints" / training.id
        if training.id.startswith(self._training_id) and list(folder.rglob("checkpoint.json")):
            self.interrupted = training.id
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("training_id", ["trial-0000", "retrain"])
def test_local_goes_on_with_a_ray_run(joined: str, tmp_path: Path, training_id: str) -> None:
    """The epochs take longer than the five seconds between two checkpoints."""
    epochs = {"search__num_epochs": 40, "retrain__num_epochs": 40, "retrain__workers": 1}
    once = {"search__num_trials": 1, "search__max_concurrent_trials": 1, "retrain__baseline": False, **epochs}
    expected = run_job(ray_spec(tmp_path / "undisturbed", **once), LocalBackend())
    interrupts = InterruptsOnce(tmp_path / "both" / "small", training_id)
    spec = ray_spec(tmp_path / "both", **once)
    with pytest.raises(KeyboardInterrupt):
        run_job(spec, RayBackend(joined), [interrupts])
    assert interrupts.interrupted is not None
    before = RunDir(tmp_path / "both" / "small").state.training(interrupts.interrupted)
    run = run_job(spec, LocalBackend())
    after = run.state.training(interrupts.interrupted)
    assert before is not None and after is not None and before.ended is None
    assert after.history[:1] == before.history[:1], "it went on from the checkpoint"
    assert essence(run.path) == essence(expected.path)


# --- failures ----------------------------------------------------------------------------------------------------


def test_blocked_trial_is_recorded(joined: str, tmp_path: Path) -> None:
    blocked = tmp_path / "small" / "checkpoints" / "trial-0000"
    run = search_job(ray_spec(tmp_path, search__early_stopping=None), RayBackend(joined), [Blocking(blocked)])
    raised, *others = run.state.trainings("search")
    assert [trial.status for trial in others] == ["complete"] * 2
    assert raised.status == "failed"
    log = run.paths.training_log(raised.id).read_text()
    assert "Traceback" in log and str(blocked) in log
    assert run.state.selected is not None and run.state.selected.training != raised.id


def test_blocked_retraining_goes_on_later(joined: str, tmp_path: Path) -> None:
    spec = ray_spec(tmp_path, max_failures=0)
    blocked = tmp_path / "small" / "checkpoints" / "train-recipe-seed-0"
    with pytest.raises(
        TrainingFailedError, match=r"the retraining failed: .*train-recipe-seed-0.*\(log: .*retrain\.log"
    ):
        train_job(spec, RayBackend(joined), [Blocking(blocked)])
    blocked.unlink()
    (trained,) = train_job(spec, RayBackend(joined)).state.trainings("retrain")
    assert [metrics.epoch for metrics in trained.history] == [1, 2, 3]
    assert trained.status == "complete"


def test_dead_trial_is_started_again(head: Head, joined: str, tmp_path: Path) -> None:
    spec = ray_spec(tmp_path, search__num_trials=1, search__num_epochs=8, search__early_stopping=None)
    killed = kill_a_trial_once(head, tmp_path)
    run = search_job(spec, RayBackend(joined))
    killed.join()
    (trial,) = run.state.trainings("search")
    assert trial.status == "complete"
    assert [metrics.epoch for metrics in trial.history] == list(range(1, 9))
    assert trial.ended is not None and trial.ended.num_failures == 1


def test_trial_that_dies_often_fails(head: Head, joined: str, tmp_path: Path) -> None:
    spec = ray_spec(tmp_path, search__num_trials=2, search__num_epochs=8, search__early_stopping=None, max_failures=0)
    killed = kill_a_trial_once(head, tmp_path)
    run = search_job(spec, RayBackend(joined))
    killed.join()
    assert sorted(str(trial.status) for trial in run.state.trainings("search")) == ["complete", "failed"]
    (failed,) = [trial for trial in run.state.trainings("search") if trial.status == "failed"]
    assert "its process died" in str(failed.reason)
    assert str(failed.reason) in run.paths.training_log(failed.id).read_text()


def test_death_between_trials_costs_one_start(joined: str, head: Head, tmp_path: Path) -> None:
    class Killing(Remembering):
        def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
            super().on_training_end(training, outcome)
            if len(self.ends) == 2:
                kill_a_trial(head)

    killing = Killing()
    spec = ray_spec(tmp_path, search__num_trials=4, search__max_concurrent_trials=1, search__early_stopping=None)
    run = search_job(spec, RayBackend(joined), [killing])
    trials = run.state.trainings("search")
    assert [trial.status for trial in trials] == ["complete"] * 4
    assert sum(trial.ended.num_failures for trial in trials if trial.ended) == 1


def kill_a_trial(head: Head) -> None:
    trials = [pid for pid, command in descendants(head.pid).items() if "ray::ImplicitFunc" in command]
    os.kill(trials[0], signal.SIGKILL)  # no test runs two jobs at a time


def kill_a_trial_once(head: Head, storage: Path) -> threading.Thread:
    """Kill one trial's process after its second epoch."""

    def kill() -> None:
        deadline = time.monotonic() + 240
        run = RunDir(storage / "small")
        while not any(trial.epochs_done >= 2 for trial in run.state.trainings("search")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        kill_a_trial(head)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_time_budget_ends_ray_searches(joined: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ray_spec(tmp_path, search__num_trials=500, search__num_epochs=4, max_hours=1, retrain__num_epochs=1)
    run = run_job(spec, RayBackend(joined), [TimeUp(monkeypatch)])
    ended = run.state.search_ended
    assert ended is not None and ended.out_of_time
    trials = run.state.trainings("search")
    assert 2 <= len(trials) < 500
    assert {trial.status for trial in trials} <= {"complete", "pruned", "stopped"}
    assert run.state.tested is not None


# --- refusals ----------------------------------------------------------------------------------------------------


def test_too_many_workers_are_refused(joined: str, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"retrain\.workers: 3 workers .* the cluster has 2: use --set retrain\.workers=2"
    ):
        run_job(ray_spec(tmp_path, retrain__workers=3), RayBackend(joined))
    assert RunDir(tmp_path / "small").state.stage_events == []


def test_silent_cluster_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no Ray cluster answers"):
        run_job(ray_spec(tmp_path), NOWHERE)
