"""A damaged record is named by every command that reads it, with exit code 3, and good files stay as they were."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_ray.cli.main import main
from mnist_ray.record.exports import write_exports
from mnist_ray.record.rundir import RunDir
from mnist_ray.report.write import write_report
from mnist_ray.storage.files import read_sealed_json, seal, write_sealed_json
from tests.faults.conftest import MadeRun
from tests.faults.made_run import RETRAINING

OTHER_READERS = ("compare", "evaluate", "predict", "resume")

Damage = Callable[[RunDir], str]  # returns a part of the message


def last_event_deleted(run: RunDir) -> str:
    """This run has no lease, as a fetched one: the exported files say how much there was."""
    max(run.paths.record.glob("*.json")).unlink()
    return f"{run.paths.record}: events"


def middle_deleted(run: RunDir) -> str:
    files = sorted(run.paths.record.glob("*.json"))
    files[len(files) // 2].unlink()
    return f"{files[len(files) // 2]} is missing"


def first_deleted(run: RunDir) -> str:
    run.paths.first_file.unlink()
    return f"{run.paths.first_file} is missing"


def event_of_nothing(run: RunDir) -> str:
    """Sealed, and cannot be applied."""
    last = max(run.paths.record.glob("*.json"))
    body = read_sealed_json(last)
    ended = {"kind": "training_ended", "at": "2026-01-01T00:00:00.000+00:00", "id": "trial-0077", "status": "complete"}
    content = {**body, "file": body["file"] + 1, "first": body["last"] + 1, "last": body["last"] + 1}
    content |= {"previous": seal(body), "events": [ended]}
    write_sealed_json(last.with_name(f"{content['file']:06d}.json"), content)
    return "'trial-0077', which was never created"


def blob_damaged(run: RunDir, name: str) -> str:
    path = run.blob_path(name)
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    return f"{path}: its content does not match its name"


def logits_damaged(run: RunDir) -> str:
    assert run.state.tested is not None
    return blob_damaged(run, run.state.tested.scores[RETRAINING]["test"].logits)


def examples_damaged(run: RunDir) -> str:
    assert run.state.tested is not None
    return blob_damaged(run, run.state.tested.examples["test"])


def model_damaged(run: RunDir) -> str:
    training = run.state.training(RETRAINING)
    assert training is not None and training.ended is not None and training.ended.model is not None
    return blob_damaged(run, training.ended.model)


def files_of(run: RunDir) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


LOG_DAMAGES = (last_event_deleted, middle_deleted, first_deleted, event_of_nothing)
BLOB_DAMAGES = (logits_damaged, examples_damaged, model_damaged)


@pytest.mark.parametrize("damage", [*LOG_DAMAGES, *BLOB_DAMAGES])
def test_report_names_damage(finished: MadeRun, damage: Damage, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(finished.run)
    said = damage(finished.run)
    before = files_of(finished.run)
    assert finished.do("report") == 3
    assert said in capsys.readouterr().err
    assert files_of(finished.run) == before


@pytest.mark.parametrize("damage", [last_event_deleted, event_of_nothing])
@pytest.mark.parametrize("reader", OTHER_READERS)
def test_every_reader_names_damage(
    finished: MadeRun, reader: str, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    said = damage(finished.run)
    assert finished.do(reader) == 3
    assert said in capsys.readouterr().err


def test_finished_runs_are_exported_again(finished: MadeRun) -> None:
    """As after a kill in the export, and only if the record is whole."""
    finished.run.paths.outcome.unlink()
    assert finished.do("resume") == 0
    assert finished.run.paths.outcome.exists()
    middle_deleted(finished.run)
    finished.run.paths.outcome.unlink()
    assert finished.do("resume") == 3
    assert not finished.run.paths.outcome.exists()


@pytest.mark.parametrize("name", ["results_parquet", "history_parquet", "results_csv", "spec", "study", "outcome"])
def test_report_makes_damaged_tables_again(finished: MadeRun, name: str) -> None:
    path: Path = getattr(finished.run.paths, name)
    path.write_bytes(b"damaged")
    assert finished.do("report") == 0
    assert path.read_bytes() != b"damaged"


def test_report_makes_deleted_files_again(finished: MadeRun) -> None:
    paths = finished.run.paths
    copies = [paths.selected_spec, paths.model(RETRAINING), paths.test_logits(RETRAINING)]
    before = [path.read_bytes() for path in copies]
    for path in copies:
        path.unlink()
    assert finished.do("report") == 0
    assert [path.read_bytes() for path in copies] == before


def test_exports_of_more_events_are_kept(finished: MadeRun) -> None:
    """Readers of a record that has lost its end leave what was made from all of it."""
    table = finished.run.paths.results_csv.read_bytes()
    last_event_deleted(finished.run)
    with pytest.raises(ValueError, match="are missing"):
        write_exports(finished.run.path)
    assert finished.run.paths.results_csv.read_bytes() == table


def test_a_damaged_run_hides_no_other(finished: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Newer than the good one, each damaged in another way, and one that is no run at all."""
    for name in ("cut", "mute", "strange"):
        shutil.copytree(finished.run.path, finished.storage / name)
    last = max((finished.storage / "cut" / "record").glob("*.json"))
    last.write_bytes(last.read_bytes()[:-40])
    first = finished.storage / "mute" / "record" / "000001.json"
    first.unlink()
    os.mkfifo(first)
    (finished.storage / "strange" / "record" / "000001.json").write_text("[]")
    (finished.storage / "file").write_text("no run")
    os.utime(finished.run.path, (1e9, 1e9))

    assert finished.do("list") == 3
    output, errors = capsys.readouterr()
    assert finished.run.path.name in output
    assert len(errors.splitlines()) == 3
    assert all(f"/{name}/record" in errors for name in ("cut", "mute", "strange"))

    assert finished.do("predict with the latest") == 0
    output, errors = capsys.readouterr()
    assert output.count("%") == 3
    assert f"of the run {finished.run.path}" in errors
    assert all(f"/{name}/record" in errors for name in ("cut", "mute", "strange"))
    assert main(["predict", str(finished.image), "--run", str(finished.storage / "cut")]) == 3
