"""Fetching puts a run in place whole or not at all, and replaces nothing but an earlier copy of the run."""

import shutil
from pathlib import Path

import pytest

from mnist_ray.cli.main import main
from mnist_ray.errors import CorruptFileError
from mnist_ray.ray_backend.jobs.fetch import unpacked_run
from mnist_ray.record.archive import pack
from mnist_ray.record.event_log import EventLog, Numbered
from mnist_ray.record.events import ConfigurationSelected
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import read_sealed_json
from tests.record.examples import log_files
from tests.report.made_up import made_up_spec, make_up


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run, the same run while it searched, and another run."""
    storage = tmp_path_factory.mktemp("runs")
    whole = make_up(made_up_spec(storage, search={"num_trials": 5}))
    make_up(made_up_spec(storage, name="other", search={"num_trials": 5}))
    early = storage / "early" / "made-up" / "record"
    early.mkdir(parents=True)
    for path in log_files(whole):
        if read_sealed_json(path)["last"] < whole.state.number_of(ConfigurationSelected):
            (early / path.name).write_bytes(path.read_bytes())
    return storage


def fetch(storage: Path, to: Path, name: str = "made-up") -> int:
    return main(["fetch", name, "--storage", str(storage), "--to", str(to)])


def interrupted_fetch(record: str, destination: Path) -> None:
    with unpacked_run(record, destination):
        raise KeyboardInterrupt


def events_of(folder: Path) -> list[Numbered]:
    return EventLog(folder / "record").read_new()


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_later_copy_replaces_an_earlier_one(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(storage / "early", tmp_path) == 0
    assert "made-up is not finished: these are the results so far" in capsys.readouterr().out
    assert events_of(tmp_path / "made-up") == events_of(storage / "early" / "made-up")
    assert fetch(storage, tmp_path) == 0
    assert "is not finished" not in capsys.readouterr().out
    assert events_of(tmp_path / "made-up") == events_of(storage / "made-up")
    assert (tmp_path / "made-up" / "model" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["made-up"]


def test_files_of_the_user_are_kept(storage: Path, tmp_path: Path) -> None:
    assert fetch(storage / "early", tmp_path) == 0
    run = tmp_path / "made-up"
    (run / "notes" / "deep").mkdir(parents=True)
    (run / "notes" / "deep" / "why.md").write_text("mine")
    (run / "record" / ".git").mkdir()
    (run / "record" / ".git" / "config").write_text("mine too")
    (run / "data").symlink_to(storage)
    assert fetch(storage, tmp_path) == 0
    assert (run / "notes" / "deep" / "why.md").read_text() == "mine"
    assert (run / "record" / ".git" / "config").read_text() == "mine too"
    assert (run / "data").readlink() == storage
    assert events_of(run) == events_of(storage / "made-up")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("other", "is not an earlier copy"),
        ("made-up", "is not an earlier copy"),  # a later one
        ("own", "is not a copy but a run of its own"),
        ("notes", "is not an earlier copy"),
    ],
)
def test_other_folders_are_not_replaced(
    storage: Path, tmp_path: Path, there: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "made-up"
    destination.mkdir()
    (destination / "notes").write_text("mine")
    if there != "notes":
        source = storage / ("early/made-up" if there == "own" else there) / "record"
        shutil.copytree(source, destination / "record")
    if there == "own":
        (destination / "leases").mkdir()
    before = everything(tmp_path)
    assert fetch(storage / "early", tmp_path) == 2
    assert message in capsys.readouterr().err
    assert everything(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["made-up"]


@pytest.mark.parametrize("fault", ["cut", "a file changed", "a model gone", "interrupted"])
def test_torn_record_changes_nothing(storage: Path, tmp_path: Path, fault: str) -> None:
    assert fetch(storage / "early", tmp_path / "here") == 0
    before = everything(tmp_path / "here")
    source = tmp_path / "made-up"
    shutil.copytree(storage / "made-up", source)
    if fault == "a file changed":
        file = log_files(RunDir(source))[-1]
        file.write_bytes(file.read_bytes().replace(b"0.", b"1.", 1))
    if fault == "a model gone":
        next((source / "record" / "blobs").iterdir()).unlink()
    record = pack(source)
    destination = tmp_path / "here" / "made-up"
    with pytest.raises(KeyboardInterrupt if fault == "interrupted" else CorruptFileError):
        interrupted_fetch(record[:-99] if fault == "cut" else record, destination)
    assert everything(tmp_path / "here") == before
    assert not list((tmp_path / "here").glob(".*"))


def test_failed_rename_keeps_the_earlier_copy(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(storage / "early", tmp_path) == 0
    before = everything(tmp_path)
    rename = Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if target == tmp_path / "made-up" and not path.name.endswith(".old"):
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    assert fetch(storage, tmp_path) == 6
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["../made-up", ".", "a/b", ""])
def test_path_as_name_is_refused(storage: Path, tmp_path: Path, name: str) -> None:
    assert fetch(storage, tmp_path / "to", name) == 2
    assert not (tmp_path / "to").exists()


def test_run_without_a_start_is_refused(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = tmp_path / "there" / "made-up" / "record"
    begun.mkdir(parents=True)
    first = storage / "made-up" / "record" / "000001.json"
    (begun / first.name).write_bytes(first.read_bytes())
    assert fetch(tmp_path / "there", tmp_path / "here") == 2
    assert "made-up has not begun yet" in capsys.readouterr().err
    assert list((tmp_path / "here").iterdir()) == []
