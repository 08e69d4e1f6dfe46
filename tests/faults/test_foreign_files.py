"""Files that others put into a run's folder, or behind a link in it, are neither written nor removed."""

import shutil
from pathlib import Path

import pytest

from mnist_ray import LocalBackend, run_job, search_job
from mnist_ray.cli.main import main
from mnist_ray.errors import CorruptFileError, SpecError
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import UNFINISHED, remove_leftovers
from tests.faults.conftest import MadeRun
from tests.faults.made_run import OPEN_TRIAL
from tests.small_job import small_spec, use_few_images

FOLDERS = ["model", "models", "logs", "leases", "checkpoints", "record", "record/blobs", f"checkpoints/{OPEN_TRIAL}"]
FILES = ["spec.yaml", "results.md", "report.html", "result.json", "study.sqlite3"]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of somebody else with files of names that a run's files have too."""
    folder = tmp_path / "foreign"
    (folder / "trial-0099").mkdir(parents=True)
    for name in ("README.md", "model.safetensors", "000001.json", "spec.yaml", "trial-0099/weights", ".hidden"):
        (folder / name).write_text("foreign")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", [*FOLDERS, *FILES])
def test_links_are_refused_by_name(
    finished: MadeRun, foreign: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    link, before = finished.run.path / place, contents(foreign)
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(foreign if place in FOLDERS else foreign / "spec.yaml")
    for command in ("report", "resume"):
        assert finished.do(command) == 3
        assert f"{link} is a symbolic link" in capsys.readouterr().err
    assert contents(foreign) == before


def test_linked_runs_are_read(finished: MadeRun, tmp_path: Path) -> None:
    """Only what lies in a run's folder must be no link."""
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "other").symlink_to(finished.run.path)
    assert main(["report", "other", "--storage", str(tmp_path / "linked")]) == 0


def test_links_elsewhere_are_refused(finished: MadeRun, foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "model").symlink_to(foreign)
    before = contents(foreign)
    assert main([*finished.commands()["report"], "--to", str(tmp_path / "to")]) == 3
    assert contents(foreign) == before


def test_only_own_leftovers_go(foreign: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".git").mkdir(parents=True)
    (run / "logs").symlink_to(foreign)
    own, kept = run / f"{UNFINISHED}spec.yaml.abc.yaml", [run / ".git" / "HEAD", run / ".nfs1", foreign / UNFINISHED]
    for path in (own, *kept):
        path.write_text("x")
    remove_leftovers(run)
    assert not own.exists()
    assert all(path.exists() for path in kept)


def test_jobs_keep_what_they_did_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)
    spec = small_spec(tmp_path, search__num_trials=1, final=None, retrain={"num_epochs": 1, "baseline": False})
    run = search_job(spec, LocalBackend())
    kept = [run.path / name for name in (".git/HEAD", "notes.txt", "checkpoints/mine/weights", "leases/mine.json")]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    run_job(spec, LocalBackend())
    assert [path.read_text() for path in kept] == ["mine"] * len(kept)


@pytest.mark.parametrize("place", ["model/README.md", "checkpoints/best.pt", "ray/notes", "spec.yaml"])
def test_new_runs_write_over_nothing(tmp_path: Path, place: str) -> None:
    """As where --name is that of somebody's project."""
    path = tmp_path / "small" / place
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(SpecError, match="is not the folder of a run and contains"):
        run_job(small_spec(tmp_path), LocalBackend())
    assert path.read_text() == "mine"
    assert not RunDir(tmp_path / "small").exists


def test_links_are_found_at_each_look(finished: MadeRun, foreign: Path) -> None:
    (finished.run.path / "model").symlink_to(foreign)
    run = finished.run
    for _ in range(2):
        with pytest.raises(CorruptFileError, match="is a symbolic link"):
            _ = run.state
