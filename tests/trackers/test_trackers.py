"""Real servers show a run while it goes on and after it was resumed; a tracker that fails costs one warning."""

import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import LocalBackend, RunDir, SpecError, run_job
from mnist_ray.callbacks import Callback, TrainingInfo
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline import job
from mnist_ray.trackers import processes
from tests.small_job import (
    STAGES,
    Blocking,
    essence,
    run_in_a_fork,
    save_every_epoch,
    small_spec,
    use_few_images,
)
from tests.trackers.servers import (
    Mlflow,
    OptunaDashboard,
    Points,
    TensorBoard,
    answers,
    metrics_of,
    mlflow_server,
    optuna_dashboard,
    params_of,
    tags_of,
    tensorboard_server,
    wait_for,
)

pytestmark = pytest.mark.timeout(900)  # three servers start, which takes minutes on a machine that is busy otherwise


@pytest.fixture(scope="module", autouse=True)
def _small_jobs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        save_every_epoch(patch)
        patch.setattr(job, "COMPLETE_S", 120.0)  # on a machine however busy
        patch.setattr(processes, "INCOMPLETE_S", 120.0)
        yield


class Looking(Callback):
    """Looks at the servers in the first epoch of the second trial, and interrupts the run once all of them show it."""

    def __init__(self, show_it: list[Callable[[], bool]]) -> None:
        self._show_it = show_it
        self.num_shown = 0

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        if training.id == "trial-0001":
            for shows_it in self._show_it:
                wait_for(shows_it)
                self.num_shown += 1
            raise KeyboardInterrupt


@dataclass
class Followed:
    """A run that was interrupted and resumed under the eyes of three servers."""

    run: RunDir
    mlflow: Mlflow
    tensorboard: TensorBoard
    optuna: OptunaDashboard
    num_shown: int  # servers that showed the open trial while it went on
    interrupted: dict[str, str]  # MLflow's status of each of its runs, by training, between the sessions

    def epochs(self, *stages: str) -> Points:
        """The epochs on record, each of which belongs into each curve once."""
        trainings = [training for stage in STAGES if stage in stages for training in self.run.state.trainings(stage)]
        return {training.id: [metrics.epoch for metrics in training.history] for training in trainings}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    folder = tmp_path_factory.mktemp("followed")
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(mlflow_server(folder))
        spec = small_spec(folder, log_to=["tensorboard", "optuna", f"mlflow={address}"])
        run = RunDir(folder / spec.name)
        study = run.paths.study
        charts = stack.enter_context(tensorboard_server(folder, run.paths.tensorboard))
        wait_for(lambda: answers(address) and answers(charts))
        tensorboard, mlflow = TensorBoard(charts), Mlflow(address, spec.name)
        dashboards: list[OptunaDashboard] = []

        def dashboard_shows_it() -> bool:
            if not study.is_file():
                return False
            if not dashboards:  # of what is there now, for both sessions
                trials = stack.enter_context(optuna_dashboard(folder, study))
                wait_for(lambda: answers(trials))
                dashboards.append(OptunaDashboard(trials))
            return dashboards[0].points().get("trial-0001") == [1]

        looking = Looking(
            [
                lambda: tensorboard.points("val_loss").get("trial-0001") == [1],
                lambda: mlflow.points("val_loss").get("trial-0001") == [1],
                dashboard_shows_it,
            ]
        )
        with pytest.raises(KeyboardInterrupt):
            run_job(spec, LocalBackend(), [looking])
        interrupted = {
            tags_of(each).get("mnist_ray.training", "parent"): each["info"]["status"] for each in mlflow.runs()
        }
        run = run_job(spec, LocalBackend())
        yield Followed(run, mlflow, tensorboard, dashboards[0], looking.num_shown, interrupted)


# --- what is shown


def test_servers_show_running_trials(followed: Followed) -> None:
    assert followed.num_shown == 3


def test_tensorboard_doubles_no_point(followed: Followed) -> None:
    wait_for(lambda: followed.tensorboard.points("test_loss"))  # the last ones; it looks once a second
    assert followed.tensorboard.points("val_loss") == followed.epochs("search", "final")
    assert followed.tensorboard.points("train_accuracy") == followed.epochs("search", "final", "retrain")


def test_mlflow_doubles_no_point(followed: Followed) -> None:
    assert followed.mlflow.points("train_loss") == followed.epochs("search", "final", "retrain")
    assert {name for name, points in followed.mlflow.points("val_loss").items() if points} == set(
        followed.epochs("search", "final")
    )


def test_dashboard_shows_the_whole_search(followed: Followed) -> None:
    """It was opened before the run was interrupted, and never again."""
    wait_for(lambda: all(trial["state"] != "Running" for trial in followed.optuna.trials()))
    assert followed.optuna.points() == followed.epochs("search")
    on_record = followed.run.state.trainings("search")
    assert [trial["state"] for trial in followed.optuna.trials()] == [
        "Complete" if trial.status == "complete" else "Pruned" for trial in on_record
    ]


def test_hyperparameters_tab_shows_last_metrics(followed: Followed) -> None:
    def rows() -> dict[str, Any]:
        return followed.tensorboard.hyperparameters("val_loss", "train_loss", "test_accuracy")

    trainings = [training for stage in STAGES for training in followed.run.state.trainings(stage)]
    wait_for(lambda: sum("test_accuracy" in row[1] for row in rows().values()) == 2)
    assert set(rows()) == {training.id for training in trainings}
    for training in trainings:
        hyperparameters, last, status = rows()[training.id]
        assert status == "STATUS_SUCCESS"
        assert hyperparameters["learning_rate"] == pytest.approx(training.config.learning_rate)
        assert hyperparameters["stage"] == training.stage
        assert last["train_loss"] == pytest.approx(training.history[-1].train.loss, rel=1e-6)
        if validation := training.history[-1].validation:
            assert last["val_loss"] == pytest.approx(validation.loss, rel=1e-6)


def test_mlflow_shows_children_below_their_parent(followed: Followed) -> None:
    parent, children = followed.mlflow.parent(), followed.mlflow.children()
    tested = followed.run.state.tested
    assert tested is not None
    assert parent["info"]["status"] == "FINISHED"
    assert params_of(parent)["search.num_trials"] == "3"
    assert {tags_of(child)["mlflow.parentRunId"] for child in children.values()} == {parent["info"]["run_id"]}
    for training_id, child in children.items():
        training = followed.run.state.training(training_id)
        assert training is not None
        assert params_of(child)["dropout"] == str(training.config.dropout)
        assert child["info"]["status"] == ("FINISHED" if training.status == "complete" else "KILLED")
        if training_id in tested.scores:
            assert metrics_of(child)["test_accuracy"] == tested.scores[training_id]["test"].score.accuracy
    assert metrics_of(parent).keys() == {
        *("test_loss", "test_accuracy", "baseline_test_loss", "baseline_test_accuracy"),
    }


def test_mlflow_shows_an_interruption(followed: Followed) -> None:
    assert followed.interrupted["trial-0001"] == followed.interrupted["parent"] == "KILLED"


def test_finished_run_is_logged_when_asked(followed: Followed, tmp_path: Path) -> None:
    """In a folder, where no server runs."""
    started = followed.run.state.started
    assert started is not None
    run_job(started.spec.model_copy(update={"log_to": (f"mlflow={tmp_path / 'mine'}",)}), LocalBackend())
    with contextlib.closing(sqlite3.connect(tmp_path / "mine" / "mlflow.db")) as database:
        rows = database.execute(
            "SELECT name, count(*) FROM runs JOIN metrics USING (run_uuid) WHERE key = 'train_loss' GROUP BY name"
        ).fetchall()
    assert dict(rows) == {name: len(epochs) for name, epochs in followed.epochs("search", "final", "retrain").items()}


# --- what may go wrong


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return essence(run_job(small_spec(tmp_path_factory.mktemp("untracked")), LocalBackend()).path)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "trackers" in record.name
    ]


@pytest.mark.parametrize("listens", [False, True], ids=["gone", "silent"])
def test_a_lost_server_costs_one_warning(
    listens: bool,
    tmp_path: Path,
    untracked: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        if not listens:
            silent.close()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:canary-77@{host}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        run = run_job(small_spec(tmp_path, log_to=["mlflow"]), LocalBackend())
    assert essence(run.path) == untracked
    (warning,) = warnings_of(caplog)
    assert warning.startswith("mlflow does not take the run") and host in warning
    assert "canary" not in caplog.text
    assert all(b"canary" not in file.read_bytes() for file in run.path.rglob("*") if file.is_file())


def test_files_that_cannot_be_written_cost_one_warning(
    tmp_path: Path, untracked: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    spec = small_spec(tmp_path, log_to=["tensorboard"])
    blocking = Blocking(tmp_path / spec.name / "tensorboard")
    run = run_job(spec, LocalBackend(), [blocking])
    assert essence(run.path) == untracked
    (warning,) = warnings_of(caplog)
    assert warning.startswith("tensorboard does not take the run") and str(blocking.path) in warning


def test_a_tracker_that_is_killed_costs_one_warning(
    tmp_path: Path, untracked: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Killing(Callback):
        def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
            for process in trackers_of(tmp_path):
                os.kill(process, signal.SIGKILL)

    run = run_job(small_spec(tmp_path, log_to=["optuna"]), LocalBackend(), [Killing()])
    assert essence(run.path) == untracked
    (warning,) = warnings_of(caplog)
    assert warning.startswith("optuna follows the run no more")


def trackers_of(folder: Path) -> list[int]:
    """Return the processes of trackers of runs in a folder."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = command.read_bytes()
            if b"mnist_ray.trackers" in text and str(folder).encode() in text:
                found.append(int(command.parent.name))
    return found


def test_no_tracker_outlives_its_run(tmp_path: Path) -> None:
    """Not even where the run's process is killed."""
    spec = small_spec(tmp_path, log_to=["optuna"])
    assert run_in_a_fork(spec, "event-epoch_reported:before:2") == -signal.SIGKILL
    assert trackers_of(tmp_path)
    wait_for(lambda: not trackers_of(tmp_path))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    spec = small_spec(tmp_path, log_to=["mlflow"])
    with pytest.raises(SpecError, match=r"pip install 'mnist-ray\[mlflow\]'"):
        run_job(spec, LocalBackend())
    assert not any(tmp_path.iterdir())


def test_trackers_are_imported_when_asked_for() -> None:
    code = (
        "import sys, mnist_ray.pipeline.job, mnist_ray.cli.main\n"
        "assert not {'mlflow', 'tensorboardX', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
