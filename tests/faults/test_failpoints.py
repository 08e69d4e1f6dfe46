"""A process that is killed before, during or after any durable write loses nothing that matters."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest

from mnist_ray import LocalBackend, RunDir, run_job
from mnist_ray.config import Stage
from mnist_ray.metrics import EpochMetrics
from mnist_ray.record import events
from mnist_ray.record.event_log import EventLog
from mnist_ray.record.state import Training
from mnist_ray.storage import files
from mnist_ray.storage.files import FAILPOINT, read_sealed_json
from tests.small_job import (
    STAGES,
    essence,
    in_a_fork,
    in_forks,
    run_in_a_fork,
    save_every_epoch,
    small_spec,
    use_few_images,
    warm_up,
)

LATER = ("event-epoch", "event-training", "checkpoint-manifest", "lease")  # also killed at a later occurrence
EVENT_KINDS = 14  # in a run that nothing disturbs: all but the failed retraining's


@pytest.fixture(scope="module", autouse=True)
def _small_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        save_every_epoch(patch)
        warm_up(tmp_path_factory.mktemp("warm"))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every durable write is known: the failpoints' names and how often each came."""
    storage = tmp_path_factory.mktemp("undisturbed")

    def call() -> None:
        os.environ[FAILPOINT] = "none"
        run_job(small_spec(storage), LocalBackend())
        (storage / "passed.json").write_text(json.dumps(files._passed))

    assert in_a_fork(call) == 0
    return storage


@pytest.mark.timeout(1200)
def test_kill_at_every_durable_write(undisturbed: Path, tmp_path: Path) -> None:
    expected = essence(undisturbed / "small")
    passed: dict[str, int] = json.loads((undisturbed / "passed.json").read_text())
    points = [f"{here}:1" for here in passed]
    points += [f"{here}:{passed[here] // 2 + 1}" for here in passed if here.startswith(LATER) and passed[here] > 1]
    assert len({here.split(":")[0] for here in passed if here.startswith("event-")}) == EVENT_KINDS
    assert len(points) > 80, "the failpoints are there"

    def drive(share: list[str]) -> None:
        for point in share:
            storage = tmp_path / point.replace(":", "-")
            assert run_in_a_fork(small_spec(storage), point) == -9, f"{point} was not reached"
            assert run_in_a_fork(small_spec(storage)) == 0, point
            assert essence(storage / "small") == expected, point
            check_folder(storage / "small", point)

    assert in_forks(lambda: drive(points[::2]), lambda: drive(points[1::2])) == [0, 0]


def check_folder(path: Path, point: str) -> None:
    """Check that nothing happened twice, nothing is left half done, and the exports are those of the record."""
    published = [numbered.event for numbered in EventLog(path / "record").read_new()]
    for kind in (events.TrainingCreated, events.TrainingEnded):
        ids = Counter(event.id for event in published if isinstance(event, kind))
        assert set(ids.values()) == {1}, (point, kind, ids)
    epochs = Counter((event.id, event.metrics.epoch) for event in published if isinstance(event, events.EpochReported))
    assert set(epochs.values()) == {1}, (point, epochs)
    assert sum(isinstance(event, events.TestOpened) for event in published) == 1, point
    leftovers = list(path.rglob(".*"))
    assert not leftovers, (point, leftovers)
    assert not list((path / "checkpoints").iterdir()), point
    table = pd.read_csv(path / "results.csv")
    assert set(table["status"]) <= {"complete", "pruned"}, point
    assert len(table) == len(pd.read_parquet(path / "results.parquet")), point
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        study = optuna.load_study(study_name="small", storage=f"sqlite:///{path / 'study.sqlite3'}")
        assert not [trial for trial in study.trials if not trial.state.is_finished()], point


@pytest.mark.parametrize("training_id", ["trial-0000", "retrain"])
def test_unpublished_epochs_come_from_the_checkpoint(undisturbed: Path, tmp_path: Path, training_id: str) -> None:
    """The kill comes when epochs have checkpoints and none is published; the times show that none is redone."""
    spec = small_spec(tmp_path)
    num_before = 0 if training_id.startswith("trial") else num_epochs(undisturbed / "small", "search", "final")
    assert run_in_a_fork(spec, f"event-epoch_reported:before:{num_before + 1}") == -9
    run = RunDir(tmp_path / "small")
    kept = checkpointed_epochs(run)
    assert kept and all(name.startswith(training_id) for name in kept)
    assert all(training.epochs_done == 0 for training in trainings_of(run, kept)), "the kill came in between"
    assert run_in_a_fork(spec) == 0
    for training in trainings_of(RunDir(run.path), kept):
        assert training.history[: len(kept[training.id])] == kept[training.id]
    assert essence(run.path) == essence(undisturbed / "small")


def checkpointed_epochs(run: RunDir) -> dict[str, list[EpochMetrics]]:
    """Return the epochs in the latest checkpoint of each training that has one."""
    latest = {
        folder.name: max(manifests, key=lambda manifest: manifest.parent.name)
        for folder in run.paths.all_checkpoints.iterdir()
        if (manifests := list(folder.rglob("checkpoint.json")))
    }
    return {
        name: [EpochMetrics.from_columns(columns) for columns in read_sealed_json(manifest)["history"]]
        for name, manifest in latest.items()
    }


def trainings_of(run: RunDir, names: Collection[str]) -> list[Training]:
    found = [training for stage in STAGES for training in run.state.trainings(stage) if training.id in names]
    assert len(found) == len(names)
    return found


def num_epochs(path: Path, *stages: Stage) -> int:
    state = RunDir(path).state
    return sum(training.epochs_done for stage in stages for training in state.trainings(stage))
