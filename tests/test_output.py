"""Work goes on where its output cannot be written; a command whose output is all that it does says so."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from mnist_ray.cli.main import main
from mnist_ray.config import dump_spec
from mnist_ray.output import GuardedStream, guarded_output
from mnist_ray.record.rundir import RunDir
from tests.small_job import small_spec, use_few_images

Put = Callable[[str, TextIO], None]

REPOSITORY = Path(__file__).resolve().parents[1]


def full_disk() -> TextIO:
    return open("/dev/full", "w", buffering=1)  # noqa: PTH123


def closed_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


def closed_file() -> TextIO:
    file = io.StringIO()
    file.close()
    return file


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Return a function that puts a stream in the place of `stdout` or `stderr`."""
    files: list[TextIO] = []

    def replace(name: str, file: TextIO) -> None:
        files.append(file)
        monkeypatch.setattr(sys, name, file)

    yield replace
    for file in files:
        with contextlib.suppress(OSError):
            file.close()


UNWRITABLE = (full_disk, closed_pipe, closed_file)


@pytest.mark.parametrize("make", UNWRITABLE)
def test_runs_go_on_without_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Put, make: Callable[[], TextIO]
) -> None:
    use_few_images(monkeypatch)
    spec = small_spec(tmp_path, search__num_trials=1, final=None, retrain={"num_epochs": 1, "baseline": False})
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    put("stdout", make())
    put("stderr", make())
    assert main(["run", str(tmp_path / "spec.yaml"), "--local"]) == 0
    assert RunDir(tmp_path / "small").state.tested is not None
    assert (tmp_path / "small" / "report.html").exists()


def test_runs_survive_head(tmp_path: Path) -> None:
    """As many type it, and as of a log that is closed in the middle of the run."""
    spec = small_spec(tmp_path, final=None, data={"name": "digits", "num_validation": 180}, kernels="plain")
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    command = (
        f"{sys.executable} -m mnist_ray.cli run {tmp_path}/spec.yaml --local 2>&1 | head -2; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stdout
    assert RunDir(tmp_path / "small").state.tested is not None


@pytest.mark.parametrize(("make", "code"), [(full_disk, 6), (closed_file, 6), (closed_pipe, 0)])
def test_lost_answers_are_reported(
    tmp_path: Path,
    put: Put,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[], TextIO],
    code: int,
) -> None:
    """Not where the reader closed the pipe, as `head` does: it wanted no more."""
    put("stdout", make())
    assert main(["results", "--storage", str(tmp_path)]) == code
    assert ("could not be written" in capsys.readouterr().err) == bool(code)


def test_help_survives_a_closed_pipe(put: Put) -> None:
    put("stdout", closed_pipe())
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stay_closed(tmp_path: Path, closed: str) -> None:
    """Otherwise a file of the run would get their numbers, and take in what libraries print."""
    program = (
        "import os, sys\nfrom mnist_ray.output import guarded_output\n"
        f"with guarded_output(): opened = open({str(tmp_path / 'file')!r}, 'w').fileno()\n"
        "sys.exit(0 if opened > 2 else 1)"
    )
    (tmp_path / "program.py").write_text(program)
    command = f"{sys.executable} {tmp_path}/program.py {closed}"
    done = subprocess.run(["bash", "-c", command], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False)
    assert done.returncode == 0


def test_streams_are_given_back() -> None:
    before = sys.stdout, sys.stderr
    with guarded_output():
        assert isinstance(sys.stdout, GuardedStream)
    assert (sys.stdout, sys.stderr) == before


def test_written_text_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded_output() as output:
        print("one")
        print("two", file=sys.stderr)
    assert capsys.readouterr() == ("one\n", "two\n")
    assert not output.is_cut
