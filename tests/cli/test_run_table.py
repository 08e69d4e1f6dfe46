"""The list of runs fits a terminal, the newest first, and shows how far a run at work is."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mnist_ray import run_job
from mnist_ray.callbacks import Callback
from mnist_ray.cli.main import main
from mnist_ray.cli.run_table import run_table
from mnist_ray.pipeline.local_backend import LocalBackend
from mnist_ray.record.listing import ListedRun, Progress, listed_run
from mnist_ray.record.rundir import RunDir
from tests.report.made_up import made_up_spec, make_up
from tests.small_job import small_spec, use_few_images

REPOSITORY = Path(__file__).resolve().parents[2]


def a_run(name: str, **changes: object) -> ListedRun:
    content: dict[str, object] = {
        "run": name, "began_at": "2026-11-27T12:00:00.000+00:00", "data": "fashion_mnist", "status": "finished",
        "running_since": None, "progress": None, "elapsed_s": 2460.0, "test_accuracy": 0.9964, "test_loss": 0.0114,
        "baseline_test_accuracy": 0.9951, "baseline_test_loss": 0.0139, "decided_by": "test_loss",
        "difference": -0.0025, "difference_low": -0.004, "difference_high": -0.001, "verdict": "better",
    }  # fmt: skip
    return ListedRun(**content | changes)  # type: ignore[arg-type]


AT_WORK = a_run(
    "at-work",
    status="running",
    running_since=datetime.now(UTC).isoformat(),
    progress=Progress("search", 12, 20, "trials"),
    test_accuracy=None,
    baseline_test_accuracy=None,
    difference=None,
    verdict=None,
)
RUNS = [
    AT_WORK,
    a_run("a-name-of-thirty-two-characters-"),
    a_run("short", decided_by="test_accuracy", difference=0.0013),
]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_width(width: int) -> None:
    headings, at_work, *finished = run_table(RUNS, width).splitlines()
    assert max(map(len, (headings, at_work, *finished))) <= width
    assert headings.split()[0] == "run" and headings.split()[-1] == "outcome"
    assert "search 12/20" in at_work
    assert all("99.64 %" in line and "better" in line for line in finished)
    if width >= 80:
        assert "running since" in at_work and "2026-11-27" in finished[0]
    if width >= 120:
        assert {"data", "difference", "accuracy"} <= set(headings.split())


def test_nothing_is_left_out_of_a_file() -> None:
    headings, _, long, short = run_table(RUNS, None).splitlines()
    assert headings.split() == ["run", "date", "time", "data", "accuracy", "baseline", "difference", "took", "outcome"]
    assert "a-name-of-thirty-two-characters-" in long and "−0.0025 loss" in long and "41 min" in long
    assert "+0.13 points" in short


def test_hostile_names_are_shown_harmless() -> None:
    assert "\x1b" not in run_table([a_run("\x1b[31mred\n")], 80)


@pytest.mark.parametrize("columns", [80, 120])
def test_list_fits_a_real_terminal(tmp_path: Path, columns: int) -> None:
    make_up(made_up_spec(tmp_path, name="a-rather-long-name-of-a-run-on-digits"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "mnist_ray.cli", "results", "--storage", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    lines = os.read(ours, 10_000).decode().split("\r\n")
    os.close(ours)
    assert len(lines) == 3 and columns / 2 < max(map(len, lines)) <= columns
    assert lines[0].split()[-1] == "outcome"


def test_newest_run_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("older", "newer"):
        make_up(made_up_spec(tmp_path, name=name), until="searched")
    older = tmp_path / "older" / "record"
    os.utime(older)  # looked at again since
    assert main(["results", "--storage", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "newer", "older"]


class Watching(Callback):
    """Lists the run from outside at the start of each stage, as another process would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seen: list[ListedRun] = []

    def on_stage_start(self, stage: str, total: int, done: int, unit: str) -> None:
        self.seen.append(listed_run(RunDir(self._folder)))


def test_run_at_work_shows_how_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)
    watching = Watching(tmp_path / "small")
    run = run_job(small_spec(tmp_path), LocalBackend(), [watching], progress=False)
    assert {each.status for each in watching.seen} == {"running"}
    assert all(each.running_since is not None for each in watching.seen)
    assert [each.progress and each.progress.stage for each in watching.seen][1:] == ["final", "retrain", "test"]
    assert listed_run(RunDir(run.path)).status == "finished"
