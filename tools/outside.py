"""python -m tools.outside: run a small real job in the surroundings that outsiders tried, and say which it held.

Each case is one job or two (digits, Ray on this machine), most of them begun again after what was done to them. A case
holds if every command ends with the promised exit code and without a traceback, if the record and the exported files
are whole, and if no process is left. A case that needs root is not tried without it, and the table says so.
"""

import argparse
import datetime
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mnist_ray.benchmarks.findings import put_between
from mnist_ray.errors import CorruptFileError
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState
from tools.chaos import processes
from tools.chaos.loop import short_folder
from tools.chaos.session import REPOSITORY
from tools.chaos.verdict import export_faults, record_faults

BEGIN, END = "<!-- outside:begin -->", "<!-- outside:end -->"
NOBODY = 65534

SPEC: dict[str, Any] = {
    "name": "outside",
    "seed": 1,
    "data": {"name": "digits", "num_validation": 180},
    "recipe": {"learning_rate": 0.0003},
    "search": {
        "num_trials": 4,
        "num_epochs": 2,
        "early_stopping": None,
        "max_concurrent_trials": 2,
        "space": {"learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}},
    },
    "final": {"top_k": 1, "seeds": 2, "num_epochs": 3},
    "retrain": {"num_epochs": 4, "workers": 2},
}


class NotTriedError(Exception):
    """A case that cannot be tried here; its text says why."""


class NotHeldError(Exception):
    """A case that did not hold; its text says what was seen."""


class Command:
    """One command, started in a session of its own."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(map(str, command)),
                cwd=log.parent,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def expect(self, *codes: int, words: str = "") -> None:
        """Wait for the end.

        Raises NotHeldError for another exit code, a traceback, a missing text, or a process that is left.
        """
        code = self._process.wait(timeout=600)
        output = self._log.read_text(errors="replace")
        last = (output.strip().splitlines() or ["nothing printed"])[-1]
        if code not in codes:
            raise NotHeldError(f"exit code {code}: {last}")
        if "Traceback (most recent call last)" in output:
            raise NotHeldError(f"a traceback in {self._log}")
        if words not in output:
            raise NotHeldError(f"{words!r} is not in {self._log}")
        if code != -signal.SIGKILL and (left := processes.of_session(self.pid)):
            raise NotHeldError(f"left running: {left[0].title}")

    def end(self) -> None:
        """Kill what is left of it."""
        while left := processes.of_session(self.pid):
            for process in left:
                processes.kill(process)
            self._process.poll()
            time.sleep(0.05)
        self._process.wait()


class Workspace:
    """The folders of one case, and the commands that it starts there."""

    def __init__(self, folder: Path, ray_dir: Path) -> None:
        self.folder = folder
        self.ray_dir = ray_dir
        self.storage = folder / "runs"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            **{"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        }
        self._started: list[Command] = []
        (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))

    def start(
        self, name: str = "one", storage: Path | None = None, wrapper: Sequence[str] = (), **environment: str
    ) -> Command:
        """Start `mnist-ray run`. wrapper: the words before the command."""
        given: list[str | Path] = ["run", self.folder / "spec.yaml", "--name", name, "--ray-dir", self.ray_dir]
        command = [*wrapper, sys.executable, "-m", "mnist_ray.cli", *given, "--storage", storage or self.storage]
        log = self.folder / f"log-{len(self._started)}"
        self._started.append(Command(command, self.environment | environment, log))
        return self._started[-1]

    def wait_for(self, command: Command, reached: Callable[[RunState], bool]) -> None:
        """Wait until the record of the run "one" shows something. Raises NotHeldError if the command ends before."""
        run = RunDir(self.storage / "one")
        while not reached(run.state):
            if command.has_ended:
                raise NotHeldError("the run ended before anything was done to it")
            time.sleep(0.02)

    def check(self, name: str = "one", storage: Path | None = None) -> None:
        """Raise NotHeldError unless a run is complete and whole."""
        run = RunDir((storage or self.storage) / name)
        try:
            faults = record_faults(run) + export_faults(run)
            if run.state.tested is None or run.state.num_ended("search") != SPEC["search"]["num_trials"]:
                faults.append("the run is not complete")
        except CorruptFileError as error:
            faults = [str(error)]
        if faults:
            raise NotHeldError(faults[0])

    def end(self) -> None:
        for command in self._started:
            command.end()


# --- cases -------------------------------------------------------------------------------------------------------


def _killed(work: Workspace, reached: Callable[[RunState], bool]) -> None:
    command = work.start()
    work.wait_for(command, reached)
    command.send(signal.SIGKILL)
    command.expect(-signal.SIGKILL)
    work.start().expect(0)
    work.check()


def killed_in_the_search(work: Workspace) -> None:
    """SIGKILL of the driver with two trials under way; the same command again."""
    _killed(work, lambda state: len(state.trainings("search")) > 2)


def killed_in_the_final_round(work: Workspace) -> None:
    """SIGKILL of the driver in the final round; the same command again."""
    _killed(work, lambda state: state.num_ended("final") > 0)


def killed_in_the_retraining(work: Workspace) -> None:
    """SIGKILL of the driver in a retraining on two workers; the same command again."""
    _killed(work, lambda state: any(training.history for training in state.trainings("retrain")))


def killed_in_the_test(work: Workspace) -> None:
    """SIGKILL of the driver once the test split is open; the same command again."""
    _killed(work, lambda state: state.test_opened is not None)


def killed_in_the_report(work: Workspace) -> None:
    """SIGKILL of the driver once the test is scored, before the report is written; the same command again."""
    _killed(work, lambda state: state.tested is not None)


def stopped_for_90_seconds(work: Workspace) -> None:
    """SIGSTOP of the driver for 90 s in the search, then SIGCONT."""
    command = work.start()
    work.wait_for(command, lambda state: len(state.trainings("search")) > 2)
    command.send(signal.SIGSTOP)
    time.sleep(90)
    command.send(signal.SIGCONT)
    command.expect(0)
    work.check()


def closed_terminal(work: Workspace) -> None:
    """SIGHUP in the search; the same command again."""
    command = work.start()
    work.wait_for(command, lambda state: len(state.trainings("search")) > 2)
    command.send(signal.SIGHUP)
    command.expect(5)
    work.start().expect(0)
    work.check()


def closed_pipe(work: Workspace) -> None:
    """The output goes to `head -2`, which ends after two lines."""
    work.start(wrapper=["bash", "-o", "pipefail", "-c", '"$@" 2>&1 | head -2', "bash"]).expect(0)
    work.check()


def moved_folder(work: Workspace) -> None:
    """A run is interrupted, its folder moved, and the run goes on there."""
    command = work.start()
    work.wait_for(command, lambda state: state.num_ended("search") > 0)
    command.send(signal.SIGINT)
    command.expect(5)
    elsewhere = work.folder / "elsewhere"
    elsewhere.mkdir()
    shutil.move(work.storage / "one", elsewhere / "one")
    work.start(storage=elsewhere).expect(0)
    work.check(storage=elsewhere)


def two_runs_at_once(work: Workspace) -> None:
    """Two runs of one user on one machine, in one storage folder."""
    commands = [work.start("one"), work.start("two")]
    for command, name in zip(commands, ("one", "two"), strict=True):
        command.expect(0)
        work.check(name)


def one_run_twice(work: Workspace) -> None:
    """The same command while it still runs: exit code 7."""
    first = work.start()
    work.wait_for(first, lambda state: state.started is not None)
    work.start().expect(7, words="is in use by")
    first.expect(0)
    work.check()


def few_open_files(work: Workspace) -> None:
    """`ulimit -n 256`."""
    work.start(wrapper=["bash", "-c", 'ulimit -n 256 && exec "$@"', "bash"]).expect(0)
    work.check()


def small_shared_memory(work: Workspace) -> None:
    """/dev/shm of 64 MB, as Docker gives."""
    _need_root()
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    work.start(wrapper=["unshare", "--mount", "bash", "-c", mount, "bash"]).expect(0)
    work.check()


def home_without_rights(work: Workspace) -> None:
    """A home folder in which nothing can be written, not even by root."""
    work.start(HOME="/proc").expect(0)
    work.check()


def not_root(work: Workspace) -> None:
    """The user nobody."""
    _need_root()
    become = [*_python_for_all(), "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # A child of a child, since `setpriv` itself may still start what its user may not.
    probe = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import ray']))"
    if subprocess.run([*become, sys.executable, "-c", probe], cwd="/", capture_output=True, check=False).returncode:
        raise NotTriedError(f"the user nobody cannot run {sys.executable} with its packages")
    home = work.folder / "home"
    home.mkdir()
    for folder in (work.folder.parent, work.folder, work.ray_dir.parent, home):
        os.chown(folder, NOBODY, NOBODY)
    work.start(wrapper=become, HOME=str(home), USER="nobody").expect(0)
    work.check()


def long_path(work: Workspace) -> None:
    """A storage folder whose path has 120 letters and more."""
    storage = work.folder / ("a-folder-with-a-long-name-" * 5)[: max(20, 120 - len(str(work.folder)))] / "runs"
    assert len(str(storage)) >= 120
    work.start(storage=storage).expect(0)
    work.check(storage=storage)


CASES: tuple[Callable[[Workspace], None], ...] = (
    killed_in_the_search,
    killed_in_the_final_round,
    killed_in_the_retraining,
    killed_in_the_test,
    killed_in_the_report,
    stopped_for_90_seconds,
    closed_terminal,
    closed_pipe,
    moved_folder,
    two_runs_at_once,
    one_run_twice,
    few_open_files,
    small_shared_memory,
    home_without_rights,
    not_root,
    long_path,
)


def _python_for_all() -> list[str]:
    """Return the words before a command that open the interpreter's folder to all, where it lies in one like /root."""
    folders = [*reversed(Path(sys.base_prefix).resolve().parents), Path(sys.base_prefix).resolve()]
    closed = next((folder for folder in folders if not folder.stat().st_mode & stat.S_IXOTH), None)
    if closed is None:
        return []
    script = (
        'hidden=$(mktemp -d) && mount --bind "$1" "$hidden" && mount -t tmpfs -o mode=755 tmpfs "$0" && '
        'mkdir -p "$1" && mount --bind "$hidden" "$1" && shift && exec "$@"'
    )
    return ["unshare", "--mount", "bash", "-c", script, str(closed), sys.base_prefix]


def _need_root() -> None:
    if os.geteuid() != 0:
        raise NotTriedError("needs root")


# --- the command -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of a case. held: None where it was not tried."""

    case: str
    description: str
    held: bool | None
    reason: str
    elapsed_s: float


def tried(case: Callable[[Workspace], None]) -> Result:
    """Try one case."""
    began = time.monotonic()
    held: bool | None = True
    reason = ""
    with _workspace() as work:
        try:
            case(work)
        except NotTriedError as error:
            held, reason = None, str(error)
        except (NotHeldError, subprocess.TimeoutExpired) as error:
            held, reason = False, str(error)
    return Result(
        case.__name__.replace("_", " "), (case.__doc__ or "").rstrip("."), held, reason, time.monotonic() - began
    )


@contextmanager
def _workspace() -> Iterator[Workspace]:
    """Yield folders of their own. They are removed at the end, with every process that was started."""
    with short_folder() as ray_dir, tempfile.TemporaryDirectory(prefix="mro-", ignore_cleanup_errors=True) as folder:
        (inner := Path(folder, "case")).mkdir()
        work = Workspace(inner, ray_dir)
        try:
            yield work
        finally:
            work.end()


def markdown(results: Sequence[Result], command: str) -> str:
    """Return the table for docs/reliability.md."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"Made by `make outside` (`{command}`) on {day}, {os.cpu_count()} cores, {platform.system()}:",
        "",
        "| case | tried | held | s |",
        "| --- | --- | --- | --- |",
    ]
    for each in results:
        state = "not tried" if each.held is None else "yes" if each.held else "NO"
        note = f"{state}: {each.reason}" if each.reason else state
        lines.append(f"| {each.case} | {each.description} | {note} | {each.elapsed_s:.0f} |")
    return "\n".join(lines)


def main() -> int:
    names = [case.__name__ for case in CASES]
    parser = argparse.ArgumentParser(
        prog="python -m tools.outside", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(names)} (default: all)")
    parser.add_argument("--page", type=Path, help="put the table between this page's marker lines")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.cases) - set(names)):
        parser.error(f"there is no case {unknown[0]!r}: use some of {', '.join(names)}")
    results = []
    for case in CASES:
        if not arguments.cases or case.__name__ in arguments.cases:
            results.append(tried(case))
            state = {None: "not tried", True: "held", False: "NOT HELD"}[results[-1].held]
            print(f"{time.strftime('%H:%M:%S')} {results[-1].case}: {state} {results[-1].reason}".rstrip(), flush=True)
    text = markdown(results, shlex.join(["python", "-m", "tools.outside", *sys.argv[1:]]))
    if arguments.page:
        put_between(arguments.page, BEGIN, END, text)
    print(text)
    return 1 if any(each.held is False for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
