"""A run in an object store: a real S3 server says what holds there."""

import socket
import threading
import time
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from mnist_ray import RunDir
from mnist_ray.cli.main import main
from mnist_ray.config import TrainingConfig
from mnist_ray.errors import CorruptFileError, OwnedByAnotherError, TakenOverError
from mnist_ray.record import lease as ownership
from mnist_ray.record.events import SearchStarted, SessionStarted
from mnist_ray.record.lease import owned
from mnist_ray.record.rundir import find_run, runs_in
from mnist_ray.storage.files import (
    children,
    create_atomic,
    exists,
    modified_at,
    read,
    read_each,
    remove,
    remove_tree,
    replace_atomic,
    storage_path,
    write_atomic,
)
from mnist_ray.storage.object_stores import OutOfReachError
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from tests.record.examples import (
    created,
    ended,
    metrics,
    reported,
    search_ended,
    started,
    taken_elsewhere,
    weights,
    writing,
)
from tests.s3_server import SECRET, S3Server

CONFIG = TrainingConfig(num_epochs=2)


def begin(path: object) -> RunDir:
    """Write a run with an owner, a stage, a training of one epoch and a model."""
    with writing(storage_path(str(path))) as writer:
        writer.publish(started())
        for event in (created(number=0), reported(), ended(model=writer.put_blob(weights(), "model"))):
            writer.record(event)
    return writer.run


def test_files_are_written_read_listed_and_removed(store: str) -> None:
    folder = storage_path(f"{store}/some/folder")
    assert not exists(folder) and children(folder) == []
    write_atomic(folder / "a.json", b"1")
    write_atomic(folder / "a.json", b"2")
    replace_atomic(folder / "b.bin", lambda path: path.write_bytes(b"made on a disk"))
    write_atomic(folder / "below" / "c.json", b"3")
    assert read_each([folder / "a.json", folder / "b.bin"]) == [b"2", b"made on a disk"]
    assert {child.name for child in children(folder)} == {"a.json", "b.bin", "below"}
    assert [child.name for child in children(folder, "*.json")] == ["a.json"]
    assert abs(modified_at(folder / "a.json") - time.time()) < 60
    assert modified_at(folder) >= modified_at(folder / "a.json")
    remove(folder / "a.json")
    remove(folder / "a.json")
    with pytest.raises(FileNotFoundError):
        read(folder / "a.json")
    remove_tree(folder)
    assert not exists(folder / "b.bin") and not exists(folder / "below" / "c.json")


def test_one_of_many_creates_a_file(store: str) -> None:
    place, winners = storage_path(f"{store}/contested"), []

    def create(number: int) -> None:
        try:
            create_atomic(place, b"of %d" % number)
            winners.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    assert read(place) == b"of %d" % winner
    create_atomic(place, b"of %d" % winner)  # what is there is ours: the answer of the first try was lost


def test_stores_hold_the_same_record(store: str, tmp_path: Path) -> None:
    there, here = begin(f"{store}/runs/one"), begin(tmp_path / "one")
    again = RunDir(there.path)
    assert again.state.num_events == here.state.num_events == 5
    (training,) = again.state.trainings("search")
    assert (training.history, training.status) == ([metrics(1)], "complete")
    assert again.weights("trial-0000") == weights()
    assert [run.path.name for run in runs_in(storage_path(f"{store}/runs"))] == ["one"]
    assert find_run("one", storage_path(f"{store}/runs")).exists
    assert find_run(f"{store}/runs/one", Path("results")).exists


def test_replaced_owners_publish_nothing(store: str) -> None:
    path = storage_path(f"{store}/run")
    with writing(path) as first:
        first.publish(started())
        with writing(path, taken_elsewhere()) as second:
            assert first.was_taken_over()
            with pytest.raises(TakenOverError):
                first.publish(search_ended())
            second.publish(SearchStarted())
    assert [type(event) for event in RunDir(path).state.stage_events] == [SessionStarted, SearchStarted]


def test_damaged_events_are_noticed(store: str) -> None:
    run = begin(f"{store}/run")
    second = run.paths.record / "000002.json"
    write_atomic(second, read(second).replace(b"1437", b"1438"))
    with pytest.raises(CorruptFileError, match="does not match its SHA-256"):
        _ = RunDir(run.path).state
    remove(second)
    with pytest.raises(CorruptFileError, match=r"000002\.json is missing"):
        _ = RunDir(run.path).state


def test_silent_owners_are_waited_for(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_S", 0.5), ("EXPIRE_S", 4.0), ("LOOK_S", 0.2)):
        monkeypatch.setattr(ownership, name, seconds)
    run = RunDir(storage_path(f"{store}/run"))
    monkeypatch.setattr(ownership, "runs_here", lambda process: False)
    monkeypatch.setattr(ownership, "is_gone", lambda process: False)
    with owned(run, lambda: None) as writer:
        with pytest.raises(OwnedByAnotherError), owned(RunDir(run.path), lambda: None):
            pass
        writer.publish(SearchStarted())
    with writing(storage_path(f"{store}/run"), taken_elsewhere()):
        pass  # and never a lease
    began = time.monotonic()
    with owned(RunDir(run.path), lambda: None):
        assert time.monotonic() - began > 1.0


def test_torn_checkpoints_are_passed_over(store: str) -> None:
    folder = storage_path(f"{store}/run/checkpoints/trial-0000")
    first = Checkpoints.of_owner(folder, 1, CONFIG)
    for epoch in (1, 2, 3):
        first.save(SavedState(epoch, [metrics(epoch)], b"tensors of %d" % epoch))
    kept = [exists(folder / "000001" / f"epoch-000{epoch}" / "checkpoint.json") for epoch in (1, 2, 3)]
    assert kept == [False, True, True]
    second = Checkpoints.of_owner(folder, 7, CONFIG)
    latest = second.latest()
    assert latest is not None and latest.completed_epochs == 3
    write_atomic(folder / "000001" / "epoch-0003" / "state.safetensors", b"torn")
    latest = second.latest()
    assert latest is not None and latest.completed_epochs == 2


@pytest.mark.slow
def test_an_outage_is_waited_for(store: str, s3_server: S3Server) -> None:
    with writing(storage_path(f"{store}/run")) as writer:
        s3_server.kill()
        threading.Timer(3.0, s3_server.start).start()
        began = time.monotonic()
        writer.publish(SearchStarted())
        assert time.monotonic() - began > 2.0
    assert RunDir(writer.run.path).state.search_started is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "canary-wrong-99"}, "signature"),
        ({"bucket": "there-is-no-such-bucket"}, "bucket"),
    ],
)
def test_refused_access_is_one_line(
    store: str,
    changes: dict[str, str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # clients of other tests, which know the right key
    storage = f"s3://{changes['bucket']}/runs" if "bucket" in changes else f"{store}/runs"
    code = main(["run", "jobs/quickstart.yaml", "--storage", storage])
    said = capsys.readouterr().err
    assert code == 6
    assert says in said and storage in said
    assert len(said.splitlines()) <= 2 and "canary" not in said and SECRET not in said


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("s3://key:canary@bucket/runs", "contains one of @"),
        ("s3://bucket/runs?secret=canary", "contains one of @"),
        ("s3:///runs", "lacks a bucket"),
        ("s3://", "lacks a bucket"),
        ("https://canary@bucket/runs", "cannot keep a run"),
    ],
)
@pytest.mark.parametrize("command", [["run", "jobs/quickstart.yaml"], ["results"]])
def test_unusable_addresses_are_not_repeated(
    command: list[str], storage: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--storage", storage]) == 2
    said = capsys.readouterr().err
    assert says in said and "canary" not in said and len(said.splitlines()) == 1


def test_passwords_are_not_repeated(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:canary@127.0.0.1:{port}")
    monkeypatch.setattr("mnist_ray.storage.object_stores.RETRY_OPTIONS", {"s3": {}})
    S3FileSystem.clear_instance_cache()
    with pytest.raises(OutOfReachError) as caught:
        read(storage_path(f"{store}/file"))
    assert "canary" not in str(caught.value)
