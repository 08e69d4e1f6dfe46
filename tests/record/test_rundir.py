"""What is put on record is what is found there, by another process, and what is damaged is refused."""

import os
import random
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from mnist_ray.errors import CorruptFileError, TakenOverError
from mnist_ray.record.rundir import RunDir, runs_in

CONFIG = {"learning_rate": 0.001, "dropout": 0.25, "batch_size": 128, "num_epochs": 3, "seed": 5}


def row(epoch: int, loss: float = 0.1) -> dict[str, float]:
    return {"epoch": epoch, "elapsed_s": 0.5, "val_loss": loss}


def unstamped(entry: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in entry.items() if key != "at"}


def recorded(path: Path) -> RunDir:
    """A run with one training of two epochs."""
    run = RunDir(path)
    run.record_asked("trial-0000", "search", CONFIG, number=0)
    run.record_epoch("trial-0000", row(1, 0.1 + 0.2))
    run.record_epoch("trial-0000", row(2, 1e-300))
    run.record_ended("trial-0000", "pruned", "among the worst at epoch 2", workers=1)
    return run


def test_a_training_reads_back_as_it_was_recorded(tmp_path: Path) -> None:
    recorded(tmp_path)
    training = RunDir(tmp_path).training("trial-0000")
    assert training is not None
    assert (training.id, training.stage, training.config) == ("trial-0000", "search", CONFIG)
    assert [unstamped(entry) for entry in training.history] == [row(1, 0.30000000000000004), row(2, 1e-300)]
    assert (training.status, training.epochs_done) == ("pruned", 2)
    assert training.ended is not None
    assert unstamped(training.ended) == {"status": "pruned", "reason": "among the worst at epoch 2", "workers": 1}
    assert training.asked["number"] == 0


def test_a_training_that_has_not_ended_is_open(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.training("trial-0000") is None
    assert not run.exists
    run.record_asked("trial-0000", "search", CONFIG)
    training = run.training("trial-0000")
    assert training is not None
    assert (training.status, training.epochs_done, training.history) == (None, 0, [])
    assert run.exists


def test_an_epoch_that_comes_out_of_a_checkpoint_is_not_recorded_again(tmp_path: Path) -> None:
    """A training that was started again reports the epochs of its checkpoint again."""
    run = recorded(tmp_path)
    num_events = run.num_events
    run.record_epoch("trial-0000", row(1, 0.1 + 0.2))
    run.record_epoch("trial-0000", row(2, 1e-300))
    assert run.num_events == num_events


def test_an_epoch_that_was_trained_again_replaces_what_was_known_from_there_on(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    run.record_epoch("trial-0000", row(1, 0.7))
    training = RunDir(tmp_path).training("trial-0000")
    assert training is not None
    assert [(entry["epoch"], entry["val_loss"]) for entry in training.history] == [(1, 0.7)]


def test_trainings_come_by_stage_and_number_and_epochs_in_order(tmp_path: Path) -> None:
    """As texts, trial-10000 comes before trial-9999."""
    run = RunDir(tmp_path)
    for number in (10_000, 9_999, 7):
        run.record_asked(f"trial-{number:04d}", "search", CONFIG)
    run.record_asked("retrain-recipe-seed-0", "retrain", CONFIG)
    for epoch in (2, 9_999, 10_000):
        run.record_epoch("trial-0007", row(epoch))
    assert [training.id for training in run.trainings("search")] == ["trial-0007", "trial-9999", "trial-10000"]
    assert [training.id for training in run.trainings("retrain")] == ["retrain-recipe-seed-0"]
    assert [entry["epoch"] for entry in run.trainings("search")[0].history] == [2, 9_999, 10_000]


def test_the_log_of_stages_keeps_every_entry_and_the_latest_counts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.stage("searched") is None
    for number in range(12):
        run.record_stage("started", session=number)
        run.record_stage("search-interrupted", session=number)
    run.record_stage("searched", num_trials=3)
    again = RunDir(tmp_path)
    latest, searched = again.stage("started"), again.stage("searched")
    assert latest is not None
    assert searched is not None
    assert latest["session"] == 11
    assert searched["num_trials"] == 3
    assert again.stage("search") is None, "part of a name is no name"
    assert [entry["stage"] for entry in again.all_stages()] == [*["started", "search-interrupted"] * 12, "searched"]
    assert [datetime.fromisoformat(entry["at"]).utcoffset() is not None for entry in again.all_stages()].count(
        True
    ) == 25


def test_leftovers_of_a_killed_write_are_not_read(tmp_path: Path) -> None:
    """They lie beside the files under hidden names, empty or torn."""
    run = recorded(tmp_path)
    run.record_stage("started", session=1)
    for path in [*tmp_path.rglob("*.json")]:
        (path.parent / f".{path.name}.x7abc_.json").write_bytes(path.read_bytes()[:10])
        (path.parent / f".{path.name}.y8bcd_.json").write_bytes(b"")
    run.record_stage("searched", session=1)
    assert [entry["stage"] for entry in run.all_stages()] == ["started", "searched"]
    training = run.training("trial-0000")
    assert training is not None
    assert training.epochs_done == 2
    assert [training.id for training in run.trainings("search")] == ["trial-0000"]


def test_every_damaged_file_of_the_record_is_refused_by_name(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    run.record_stage("started", spec={"name": "x"})
    chance = random.Random(0)
    for path in sorted((tmp_path / "record").rglob("*.json")):
        whole = path.read_bytes()
        for damaged in (b"", whole[: chance.randrange(len(whole))], whole.replace(b"a", b"b", 1)):
            path.write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=path.name):
                RunDir(tmp_path).all_stages()
        path.write_bytes(whole)
    assert RunDir(tmp_path).all_stages()


def test_a_missing_event_is_noticed(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    events = sorted((tmp_path / "record").glob("*.json"))
    for path in events[:-1]:
        whole = path.read_bytes()
        path.unlink()
        assert RunDir(tmp_path).exists
        with pytest.raises(CorruptFileError, match=f"{path.name} is missing"):
            RunDir(tmp_path).all_stages()
        path.write_bytes(whole)
    assert RunDir(tmp_path).trainings("search") == run.trainings("search")


def test_an_event_of_another_run_is_noticed(tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    recorded(tmp_path / "other")
    shutil.copy(tmp_path / "one" / "record" / "000003.json", tmp_path / "other" / "record" / "000003.json")
    with pytest.raises(CorruptFileError, match=r"00000[34]\.json does not follow"):
        RunDir(tmp_path / "other").all_stages()


def test_a_blob_is_what_its_name_says_or_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    name = run.put_blob(b"weights", "model")
    assert run.blob(name) == b"weights"
    (tmp_path / "record" / "blobs" / name).write_bytes(b"weightz")
    with pytest.raises(CorruptFileError, match=name):
        run.blob(name)
    (tmp_path / "record" / "blobs" / name).unlink()
    with pytest.raises(CorruptFileError, match="is missing"):
        run.blob(name)
    with pytest.raises(CorruptFileError, match="is no SHA-256"):
        run.blob("../../../etc/passwd")


def test_of_two_writers_one_publishes(tmp_path: Path) -> None:
    run, other = recorded(tmp_path), RunDir(tmp_path)
    assert run.num_events == other.num_events
    other.take({"host": "elsewhere", "pid": 1})
    with pytest.raises(TakenOverError, match="process 1 on host elsewhere"):
        run.record_stage("tested")
    other.record_stage("searched")
    assert [entry["stage"] for entry in RunDir(tmp_path).all_stages()] == ["searched"]


def test_events_of_a_later_release_do_not_keep_tables_from_being_made(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    run._publish("weather", text="sunny")
    assert len(RunDir(tmp_path).trainings("search")) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "trial", "Trial-1", "trial-0001/../../x"])
def test_an_id_cannot_leave_the_record(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorruptFileError):
        RunDir(tmp_path / "run").record_asked(name, "search", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_runs_are_found_newest_first_and_nothing_else_is_one(tmp_path: Path) -> None:
    assert runs_in(tmp_path / "absent") == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for age, name in enumerate(["newest", "older", "oldest"]):
        run = recorded(tmp_path / name)
        os.utime(run.path, (1e9 - age, 1e9 - age))
    assert [run.path.name for run in runs_in(tmp_path)] == ["newest", "older", "oldest"]


def test_its_places_are_absolute_and_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in folders of their own, where a relative path means another place."""
    monkeypatch.chdir(tmp_path)
    run = RunDir(Path("results/mnist"))
    places = [run.spec, run.outcome, run.study, run.model("trial-0001"), run.checkpoints("trial-0001"), run.ray_state]
    assert all(place.is_relative_to(tmp_path / "results" / "mnist") for place in places)
