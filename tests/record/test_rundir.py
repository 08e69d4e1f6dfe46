"""A run's folder shows what its owner published, to this process and to others, and refuses what is damaged."""

import os
from pathlib import Path

import pytest

from mnist_ray.config import parse_spec
from mnist_ray.errors import CorruptFileError, SpecError
from mnist_ray.pipeline.job import open_run
from mnist_ray.record.lease import owned
from mnist_ray.record.rundir import RunDir, find_run, runs_in
from mnist_ray.storage.files import read_sealed_json, sealed_json
from tests.record.examples import (
    created,
    ended,
    log_files,
    one_training,
    read,
    reported,
    split_opened,
    weights,
    write,
    writing,
)


def test_readers_follow_the_owner(tmp_path: Path) -> None:
    reader = RunDir(tmp_path)
    assert (reader.exists, reader.state.num_events) == (False, 0)
    with writing(tmp_path) as writer:
        writer.publish(created())
        assert RunDir(tmp_path).exists
        assert len(reader.state.trainings("search")) == 1
        writer.publish(reported())
        assert [training.epochs_done for training in reader.state.trainings("search")] == [1]


def test_owners_see_what_is_published(tmp_path: Path, unhurried: None) -> None:
    with writing(tmp_path) as writer:
        writer.record(created())
        assert writer.run.state.trainings("search") == []
        writer.flush()
        assert len(writer.run.state.trainings("search")) == 1
    assert writer.run.state.num_events == read(tmp_path).state.num_events == 2
    write(tmp_path, reported())
    assert writer.run.state.num_events == 4, "of the next owner, too"


def test_missing_last_events_are_noticed(tmp_path: Path) -> None:
    """The log alone cannot show that; the lease counts the events."""
    with owned(RunDir(tmp_path), lambda: None) as writer:
        writer.publish(created())
        writer.publish(split_opened())
    (tmp_path / "record" / "000003.json").unlink()
    run = RunDir(tmp_path)
    for _ in range(2):
        with pytest.raises(CorruptFileError, match="events 3 to 3 are missing"):
            _ = run.state


def test_damage_is_refused_at_each_look(tmp_path: Path) -> None:
    """Not only at the first, after which half of the record would be believed."""
    path = log_files(write(tmp_path, *one_training()))[1]
    body = read_sealed_json(path)
    body["events"][3]["id"] = "../../x"
    path.write_bytes(sealed_json(body))
    run = RunDir(tmp_path)
    for _ in range(2):
        with pytest.raises(CorruptFileError, match=r"'\.\./\.\./x'"):
            _ = run.state


def test_unknown_kinds_are_only_read(tmp_path: Path) -> None:
    """Readers pass over another release's events; writers refuse the run."""
    storage = tmp_path / "runs"
    spec = parse_spec({"name": "example", "data": {"name": "digits"}, "storage": str(storage)})
    path = log_files(write(storage / "example", *one_training(), split_opened()))[1]
    body = read_sealed_json(path)
    body["events"][4]["kind"] = "weather_observed"
    path.write_bytes(sealed_json(body))
    state = read(storage / "example").state
    assert [training.status for training in state.trainings("search")] == ["pruned"]
    assert state.test_opened is None
    with pytest.raises(SpecError, match=r"whose record mnist_ray .* cannot continue"):
        open_run(spec)


# --- blobs


def test_blobs_are_what_their_names_say(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        run, name = writer.run, writer.put_blob(b"weights", "model")
        assert run.blob(name) == b"weights"
        (tmp_path / "record" / "blobs" / name).write_bytes(b"weightz")
        with pytest.raises(CorruptFileError, match=name):
            run.blob(name)
        (tmp_path / "record" / "blobs" / name).unlink()
        with pytest.raises(CorruptFileError, match="is missing"):
            run.blob(name)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "", "..", "0" * 63, "G" * 64, "a\0b"])
def test_other_names_are_no_blobs(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorruptFileError, match="is not a SHA-256"):
        RunDir(tmp_path).blob(name)


def test_models_are_found_by_training(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.record(created())
        writer.record(ended(model=writer.put_blob(weights(), "model")))
        writer.record(created("trial-0001"))
    run = read(tmp_path)
    assert run.weights("trial-0000") == weights()
    assert run.weights("trial-0001") is run.weights("trial-0002") is None


# --- finding runs


def test_runs_come_newest_first(tmp_path: Path) -> None:
    assert runs_in(tmp_path / "absent") == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for age, name in enumerate(["newest", "older", "oldest"]):
        run = write(tmp_path / name, *one_training())
        os.utime(run.path, (1e9 - age, 1e9 - age))
    assert [run.path.name for run in runs_in(tmp_path)] == ["newest", "older", "oldest"]


def test_runs_are_found_by_name_or_folder(tmp_path: Path) -> None:
    write(tmp_path / "one", *one_training())
    assert find_run("one", tmp_path).path == tmp_path / "one"
    assert find_run(str(tmp_path / "one"), Path("elsewhere")).path == tmp_path / "one"
    with pytest.raises(SpecError, match=r"no run 'two' in .* \(there: one\)"):
        find_run("two", tmp_path)
