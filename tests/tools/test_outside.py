"""The table says what was tried, and a run that is not whole does not hold."""

import sys
from pathlib import Path

import pytest

from mnist_ray import LocalBackend, parse_spec, run_job, write_report
from tools import outside
from tools.outside import SPEC, Command, NotHeldError, NotTriedError, Workspace, markdown, tried


def needs_something(work: Workspace) -> None:
    """A case without its program."""
    raise NotTriedError("needs root")


def ends_at_once(work: Workspace) -> None:
    """A run whose command fails."""
    work.start(storage=Path("/proc/nowhere")).expect(0)


def test_results_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    results = [tried(needs_something), tried(ends_at_once)]
    assert [each.held for each in results] == [None, False]
    text = markdown(results, "the command")
    assert "| needs something | A case without its program | not tried: needs root |" in text
    assert "| ends at once | A run whose command fails | NO: exit code 6: mnist-ray: /proc/nowhere" in text


def test_traceback_does_not_hold(tmp_path: Path) -> None:
    script = "import traceback\ntry: 1 / 0\nexcept ZeroDivisionError: traceback.print_exc()"
    command = Command([sys.executable, "-c", script], {}, tmp_path / "log")
    with pytest.raises(NotHeldError, match="a traceback"):
        command.expect(0)


def test_process_left_does_not_hold(tmp_path: Path) -> None:
    command = Command(["bash", "-c", "sleep 60 &"], {"PATH": "/usr/bin:/bin"}, tmp_path / "log")
    with pytest.raises(NotHeldError, match=r"left running: .*sleep 60"):
        command.expect(0)
    command.end()


def test_incomplete_run_does_not_hold(tmp_path: Path) -> None:
    work = Workspace(tmp_path, tmp_path / "ray")
    spec = parse_spec({**SPEC, "name": "one", "storage": str(work.storage)})
    run = run_job(spec, LocalBackend())
    with pytest.raises(NotHeldError, match=r"results\.md is missing"):
        work.check()
    write_report(run)
    work.check()
    run.paths.results_csv.unlink()
    with pytest.raises(NotHeldError, match=r"results\.csv is missing"):
        work.check()


def test_unknown_case_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["outside", "killed"])
    with pytest.raises(SystemExit):
        outside.main()
    assert "there is no case 'killed': use some of killed_in_the_search" in capsys.readouterr().err
