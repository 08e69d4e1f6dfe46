"""Names and recorded paths lead nowhere outside a run's folder."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import main
from mnist_ray.config import parse_spec
from mnist_ray.errors import CorruptFileError, SpecError
from mnist_ray.record.exports import write_exports
from mnist_ray.record.rundir import RunDir
from tests.faults.conftest import NOWHERE, MadeRun
from tests.faults.made_run import RETRAINING, TRIAL, record_files, tamper

pytestmark = pytest.mark.slow

# --- names of runs

HOSTILE_NAMES = [
    *("../x", "../../x", "/x", "a/b", "a/../../x", ".", "..", "", " ", "~", "~root", "-x", ".hidden", "a\0b", "a\nb"),
    *("\\\\server\\x", "C:\\x", "é", "x" * 65, "x" * 100_000, "$HOME", "a;b", "x\u202ey"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[:20])
def test_hostile_names_make_nothing(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match="name"):
        parse_spec({"name": name, "data": {"name": "digits"}})
    (tmp_path / "spec.yaml").write_text("data: {name: digits, num_validation: 180}\n")
    storage = tmp_path / "deep" / "storage"
    arguments = ["run", str(tmp_path / "spec.yaml"), f"--name={name}", "--storage", str(storage), "--address", NOWHERE]
    assert main(arguments) == 2
    assert "is not a valid run name" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["spec.yaml"]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("command", ["report", "compare", "evaluate", "predict"])
def test_hostile_names_are_not_read(
    tmp_path: Path, name: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--storage", str(tmp_path / "storage")]
    given = {"compare": ["compare", "--", name, name]}
    given |= {each: [each, "--", name] for each in ("report", "evaluate")}
    arguments = given.get(command, ["predict", str(tmp_path / "x.png"), f"--run={name}"])
    assert main([arguments[0], *where, *arguments[1:]]) in (2, 6)
    assert capsys.readouterr().err.startswith("mnist-ray: ")
    assert list(tmp_path.iterdir()) == []


# --- ids and paths on record

EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree"}
_seen: list[Path] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in EVENTS:
        _seen.extend(Path(part) for part in arguments[:2] if isinstance(part, str | Path) and str(part).startswith("/"))


@pytest.fixture(scope="module", autouse=True)
def auditing() -> None:
    """Install an audit hook, which stays for as long as the process and does nothing outside `watched`."""
    sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[list[Path]]:
    """Yield a list that gets every path that Python opens, makes, moves or removes meanwhile."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


def outside(made: MadeRun, paths: list[Path]) -> list[Path]:
    """Return the paths below the test's folder, or in the system's, that are not the run's and were not given."""
    allowed = (made.run.path, made.image.parent)
    resolved = {path.resolve() for path in paths}
    return sorted(
        path
        for path in resolved
        if (path.is_relative_to(made.folder.parent) or path.is_relative_to("/etc/passwd"))
        and not any(path.is_relative_to(folder) for folder in allowed)
    )


@pytest.fixture
def decoys(finished: MadeRun) -> list[Path]:
    """Put sound models where a program that follows a hostile id would load one."""
    made = [finished.storage / "outside.safetensors", finished.folder / "outside.safetensors"]
    for path in made:
        shutil.copyfile(finished.run.paths.model(RETRAINING), path)
    return made


def hostile_ids(made: MadeRun) -> dict[str, str]:
    return {
        "out of models": "../../outside",
        "out of storage": "../../../outside",
        "absolute": str(made.folder / "outside"),
        "back into another": f"../models/{RETRAINING}",
        "nul": "a\0b",
        "long": "x" * 5000,
        "empty": "",
        "dots": "..",
    }


STAGE_KINDS = ("configuration_selected", "test_opened", "test_scored")
TRAINING_KINDS = ("training_created", "epoch_reported", "training_ended")


def replacing(old: str, new: str) -> Callable[[Any], Any]:
    return lambda value: new if value == old else value


@pytest.mark.parametrize("kinds", [(), STAGE_KINDS, TRAINING_KINDS], ids=["all", "stages", "trainings"])
@pytest.mark.parametrize("old", [RETRAINING, TRIAL])
@pytest.mark.parametrize("kind", ["out of models", "out of storage", "absolute", "nul", "long", "empty", "dots"])
def test_hostile_ids_lead_nowhere(
    finished: MadeRun, decoys: list[Path], kind: str, old: str, kinds: tuple[str, ...]
) -> None:
    tamper(finished.run, replacing(old, hostile_ids(finished)[kind]), kinds)
    before = everything_outside(finished)
    with watched() as seen:
        codes = {name: finished.do(name) for name in finished.commands()}
    assert outside(finished, seen) == []
    assert everything_outside(finished) == before
    assert set(codes.values()) <= {0, 2, 3}
    if old == RETRAINING:
        assert codes["evaluate"] and codes["predict"], "the model is not where the record says"


@pytest.mark.parametrize("name", ["../../../given/spec.yaml", "/etc/passwd", "..", "a\0b", "X" * 64, "0" * 64])
@pytest.mark.parametrize("key", ["model", "logits"])
def test_hostile_blobs_lead_nowhere(finished: MadeRun, key: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(finished.run, lambda value: {**value, key: name} if isinstance(value, dict) and key in value else value)
    before = everything_outside(finished)
    with watched() as seen:
        codes = {command: finished.do(command) for command in finished.commands()}
    assert outside(finished, seen) == []
    assert everything_outside(finished) == before
    if key == "model":
        assert codes["evaluate"] == codes["predict"] == 3
    assert "root:" not in "".join(capsys.readouterr())


def everything_outside(made: MadeRun) -> dict[Path, bytes]:
    """Return every file near the run that is not the run's."""
    near = (path for path in made.folder.parent.rglob("*") if not path.is_relative_to(made.run.path))
    return {path: path.read_bytes() for path in near if path.is_file()}


@pytest.mark.parametrize("log", ["/etc/passwd", "../../outside.safetensors", "a\0b"])
def test_hostile_logs_are_not_opened(
    finished: MadeRun, decoys: list[Path], log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(value: Any) -> Any:
        return {**value, "log": log, "reason": "x"} if isinstance(value, dict) and "status" in value else value

    tamper(finished.run, change)
    assert any(b'"log"' in path.read_bytes() for path in record_files(finished.run))
    with watched() as seen:
        codes = {finished.do(name) for name in finished.commands()}
        write_exports(finished.run.path)
    assert outside(finished, seen) == []
    assert codes == {0}
    assert "root:" not in "".join(capsys.readouterr()) + finished.run.paths.results_markdown.read_text()


def test_escapes_are_noticed(finished: MadeRun, decoys: list[Path]) -> None:
    """Or the tests above would show nothing."""
    with watched() as seen:
        decoys[0].read_bytes()
        (finished.storage / "made").joinpath("..", "new").mkdir()
        RunDir(finished.folder).paths.spec.write_text("x")
        finished.run.paths.spec.read_bytes()
    assert outside(finished, seen) == sorted([decoys[0], finished.storage / "new", finished.folder / "spec.yaml"])


# --- the run's folder itself

MAKE_PATHS: dict[str, Callable[[RunDir, str], object]] = {
    "model": lambda run, name: run.paths.model(name),
    "test_logits": lambda run, name: run.paths.test_logits(name),
    "training_log": lambda run, name: run.paths.training_log(name),
    "checkpoints": lambda run, name: run.paths.checkpoints(name),
    "blob": lambda run, name: run.blob(name),
}


@pytest.mark.parametrize("name", ["../../x", "../x", "ROOT/x", "..", ".", "", "a/b", "a\0b", "trial-0001/../../x"])
@pytest.mark.parametrize("method", MAKE_PATHS)
def test_paths_refuse_hostile_ids(tmp_path: Path, method: str, name: str) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises((AssertionError, CorruptFileError, ValueError)):
        MAKE_PATHS[method](RunDir(tmp_path / "storage" / "run"), name.replace("ROOT", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
