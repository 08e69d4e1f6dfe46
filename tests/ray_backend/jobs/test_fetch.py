"""A fetched run takes its place whole or not at all, and only that of an earlier copy of itself."""

import shutil
from pathlib import Path

import pytest

from mnist_ray.cli.main import main
from mnist_ray.errors import CorruptFileError
from mnist_ray.ray_backend.jobs.fetch import fetched
from mnist_ray.record.archive import packed
from mnist_ray.record.rundir import RunDir
from tests.report.made_up import made_up_spec, make_up


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a whole run, the same while it searched, and another."""
    storage = tmp_path_factory.mktemp("runs")
    whole = make_up(made_up_spec(storage, search={"num_trials": 5}))
    make_up(made_up_spec(storage, name="other", search={"num_trials": 5}))
    early = storage / "early" / "made-up" / "record"
    early.mkdir(parents=True)
    for path in sorted(whole.record.glob("*.json"))[:12]:
        (early / path.name).write_bytes(path.read_bytes())
    return storage


def fetch(storage: Path, to: Path, name: str = "made-up") -> int:
    return main(["fetch", name, "--storage", str(storage), "--to", str(to)])


def interrupted_fetch(text: str, destination: Path) -> None:
    with fetched(text, destination):
        raise KeyboardInterrupt


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_unfinished_run_is_fetched_as_it_is_and_replaced_by_what_came_of_it(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(storage / "early", tmp_path) == 0
    assert "made-up is not finished: this is as far as it has come" in capsys.readouterr().out
    assert RunDir(tmp_path / "made-up").num_events == 12
    assert fetch(storage, tmp_path) == 0
    assert "is not finished" not in capsys.readouterr().out
    assert RunDir(tmp_path / "made-up").events() == RunDir(storage / "made-up").events()
    assert (tmp_path / "made-up" / "model" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["made-up"]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("other", "holds something else than an earlier copy"),
        ("made-up", "holds something else than an earlier copy"),  # a later one
        ("own", "is no copy: a process worked on the run there"),
        ("notes", "holds something else than an earlier copy"),
    ],
)
def test_whatever_else_lies_there_stays(
    storage: Path, tmp_path: Path, there: str, said: str, capsys: pytest.CaptureFixture[str]
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
    assert said in capsys.readouterr().err
    assert everything(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["made-up"]


@pytest.mark.parametrize("fault", ["cut", "an event changed", "a model gone", "interrupted"])
def test_what_arrives_torn_leaves_everything_as_it_was(storage: Path, tmp_path: Path, fault: str) -> None:
    assert fetch(storage / "early", tmp_path / "here") == 0
    before = everything(tmp_path / "here")
    source = tmp_path / "made-up"
    shutil.copytree(storage / "made-up", source)
    if fault == "an event changed":
        event = source / "record" / "000020.json"
        event.write_bytes(event.read_bytes().replace(b"0.", b"1.", 1))
    if fault == "a model gone":
        next((source / "record" / "blobs").iterdir()).unlink()
    text = packed(source)
    destination = tmp_path / "here" / "made-up"
    with pytest.raises(KeyboardInterrupt if fault == "interrupted" else CorruptFileError):
        interrupted_fetch(text[:-99] if fault == "cut" else text, destination)
    assert everything(tmp_path / "here") == before
    assert not list((tmp_path / "here").glob(".*"))


def test_a_folder_that_cannot_be_put_in_place_leaves_the_earlier_copy(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_a_name_that_leads_elsewhere_is_refused(storage: Path, tmp_path: Path, name: str) -> None:
    assert fetch(storage, tmp_path / "to", name) == 2
    assert not (tmp_path / "to").exists()


def test_a_run_that_has_not_begun_is_not_fetched(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "there" / "made-up" / "record"
    begun.mkdir(parents=True)
    first = storage / "made-up" / "record" / "000001.json"
    (begun / first.name).write_bytes(first.read_bytes())
    assert fetch(tmp_path / "there", tmp_path / "here") == 2
    assert "made-up has not begun yet" in capsys.readouterr().err
    assert list((tmp_path / "here").iterdir()) == []
