"""A run in an object store keeps what a run on a disk does, on a real S3 server."""

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
from tests.s3_server import SECRET, S3Server

ROW = {"epoch": 1, "elapsed_s": 0.5, "val_loss": 0.25}
CONFIG = TrainingConfig(num_epochs=2)


def begin(path: object) -> RunDir:
    """A run with an owner, a stage, a training of one epoch and a model."""
    run = RunDir(storage_path(str(path)))
    run.take({"host": "here", "pid": 1, "version": "0"})
    run.record_stage("started", spec={})
    run.record_asked("trial-0000", "search", {"learning_rate": 0.1}, number=0)
    run.record_epoch("trial-0000", ROW)
    run.record_ended("trial-0000", "complete", None, model=run.put_blob(b"weights", "model"))
    return run


def test_store_reads_lists_and_removes(store: str) -> None:
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


def test_one_of_many_creators_wins(store: str) -> None:
    path, winners = storage_path(f"{store}/contested"), []

    def create(number: int) -> None:
        try:
            create_atomic(path, b"of %d" % number)
            winners.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    assert read(path) == b"of %d" % winner
    create_atomic(path, b"of %d" % winner)  # as after a lost reply


def test_record_equals_one_on_disk(store: str, tmp_path: Path) -> None:
    there, here = begin(f"{store}/runs/one"), begin(tmp_path / "one")
    again = RunDir(there.path)
    assert [event["kind"] for event in again.events()] == [event["kind"] for event in here.events()]
    (training,) = again.trainings("search")
    assert training.history[0].items() >= ROW.items() and training.status == "complete"
    assert again.model_content("trial-0000") == b"weights"
    assert [run.path.name for run in runs_in(storage_path(f"{store}/runs"))] == ["one"]
    assert find_run("one", storage_path(f"{store}/runs")).exists
    assert find_run(f"{store}/runs/one", Path("results")).exists


def test_replaced_owner_publishes_nothing(store: str) -> None:
    first = begin(f"{store}/run")
    second = RunDir(first.path)
    assert second.owner is not None
    second.take({"host": "there", "pid": 2, "version": "0"})
    assert first.was_taken_over()
    with pytest.raises(TakenOverError):
        first.record_stage("chosen")
    second.record_stage("chosen")
    assert [entry["stage"] for entry in RunDir(first.path).all_stages()] == ["started", "chosen"]


def test_missing_and_changed_events_are_refused(store: str) -> None:
    run = begin(f"{store}/run")
    content = read(run.record / "000003.json")
    write_atomic(run.record / "000003.json", content.replace(b"0.1", b"0.2"))
    with pytest.raises(CorruptFileError, match="does not match its SHA-256"):
        RunDir(run.path).trainings("search")
    remove(run.record / "000003.json")
    with pytest.raises(CorruptFileError, match=r"000003\.json is missing"):
        RunDir(run.path).trainings("search")


def test_lease_holds_in_a_store(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_S", 0.5), ("EXPIRE_S", 4.0), ("LOOK_S", 0.2)):
        monkeypatch.setattr(ownership, name, seconds)
    run = RunDir(storage_path(f"{store}/run"))
    monkeypatch.setattr(ownership, "place", lambda: {"boot": "another machine"})
    with owned(run, lambda note: None, lambda: None):
        with pytest.raises(OwnedByAnotherError), owned(RunDir(run.path), lambda note: None, lambda: None):
            pass
        run.record_stage("step")
    silent = RunDir(run.path)
    assert silent.owner is not None
    silent.take({"host": "elsewhere", "pid": 1, "pid_started": "1", "version": "0"})  # and never a lease
    began = time.monotonic()
    with owned(RunDir(run.path), lambda note: None, lambda: None):
        assert time.monotonic() - began > 1.0


def test_torn_checkpoint_is_skipped(store: str) -> None:
    folder = storage_path(f"{store}/run/checkpoints/trial-0000")
    first = Checkpoints.of_generation(folder, 1, CONFIG)
    for epoch in (1, 2, 3):
        first.save(SavedState(epoch, [{"epoch": epoch}], b"tensors of %d" % epoch))
    kept = [exists(folder / "000001" / f"epoch-000{epoch}" / "checkpoint.json") for epoch in (1, 2, 3)]
    assert kept == [False, True, True]
    second = Checkpoints.of_generation(folder, 7, CONFIG)
    latest = second.latest()
    assert latest is not None and latest.completed_epochs == 3
    write_atomic(folder / "000001" / "epoch-0003" / "state.safetensors", b"torn")
    latest = second.latest()
    assert latest is not None and latest.completed_epochs == 2


@pytest.mark.slow
def test_outage_is_waited_for(store: str, s3_server: S3Server) -> None:
    run = begin(f"{store}/run")
    s3_server.kill()
    threading.Timer(3.0, s3_server.start).start()
    began = time.monotonic()
    run.record_stage("chosen")
    assert time.monotonic() - began > 2.0
    assert RunDir(run.path).stage("chosen") is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "canary-wrong-99"}, "signature"),
        ({"bucket": "there-is-no-such-bucket"}, "bucket"),
    ],
)
def test_refused_access_is_one_line(
    store: str,
    changes: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # clients of other tests, which have the right key
    storage = f"s3://{changes['bucket']}/runs" if "bucket" in changes else f"{store}/runs"
    code = main(["run", "jobs/quickstart.yaml", "--storage", storage])
    errors = capsys.readouterr().err
    assert code == 6
    assert message in errors and storage in errors
    assert len(errors.splitlines()) <= 2 and "canary" not in errors and SECRET not in errors


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("s3://key:canary@bucket/runs", "holds one of @"),
        ("s3://bucket/runs?secret=canary", "holds one of @"),
        ("s3:///runs", "names no bucket"),
        ("s3://", "names no bucket"),
        ("https://canary@bucket/runs", "cannot keep a run"),
    ],
)
@pytest.mark.parametrize("command", [["run", "jobs/quickstart.yaml"], ["results"]])
def test_invalid_address_is_refused_unrepeated(
    command: list[str], storage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--storage", storage]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "canary" not in errors and len(errors.splitlines()) == 1


def test_endpoint_password_is_not_repeated(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:canary@127.0.0.1:{port}")
    monkeypatch.setattr("mnist_ray.storage.object_stores.RETRY_OPTIONS", {"s3": {}})
    S3FileSystem.clear_instance_cache()
    with pytest.raises(OutOfReachError) as caught:
        read(storage_path(f"{store}/file"))
    assert "canary" not in str(caught.value)
