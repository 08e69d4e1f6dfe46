"""The command line. Heavy imports stay inside the commands, so that `--help` answers at once."""

import argparse
import atexit
import gc
import io
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from mnist_ray import __version__
from mnist_ray.cli.cluster_commands import add_cluster_commands
from mnist_ray.cli.completion import add_completion_command
from mnist_ray.cli.job_commands import add_job_commands
from mnist_ray.cli.machine_commands import add_machine_commands
from mnist_ray.cli.run_commands import add_run_commands
from mnist_ray.cli.spec_commands import add_spec_commands
from mnist_ray.errors import OSERROR_EXIT_CODE, InterruptedRunError, MnistRayError, SpecError
from mnist_ray.output import guarded_output
from mnist_ray.pipeline.signals import stoppable
from mnist_ray.shown import shown

DESCRIPTION = """\
Search hyperparameters, retrain the best, test it once: one command, on one machine or on a Ray cluster.
"""

EXIT_CODES = """\
exit codes: 0 success; 2 a mistake in the command or the spec; 3 data or a record missing or damaged;
4 training failed; 5 interrupted, run the same command to continue; 6 a file could not be read or written;
7 another process works on the run; 8 a compared run is worse, or a replayed trial or an exported model gave other
numbers; 9 --fail-if-worse could not compare a run
"""

atexit.register(gc.freeze)  # Python's last search for garbage takes a second of the prompt, and frees nothing


def main(arguments: Sequence[str] | None = None, storage_root: Path | None = None) -> int:
    """Run a command; returns the exit code. A relative `storage` lies below `storage_root` (default: here)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Otherwise a minus sign or an arrow ends the command after hours, where the terminal is not one of UTF-8.
        sys.stdout.reconfigure(errors="replace")
    with guarded_output() as output:
        parsed = _parser().parse_args(arguments)
        parsed.storage_root = storage_root
        code = _run(parsed)
        output.flush()
        if output.is_cut:
            failed = _fail(f"the output could not be written: {output.failure}", OSERROR_EXIT_CODE)
            return code if code or parsed.is_work else failed
        return code


def _run(parsed: argparse.Namespace) -> int:
    try:
        command: Callable[[argparse.Namespace], int] = parsed.command
        with stoppable():  # from the first moment on, before the imports of a command
            return command(parsed)
    except KeyboardInterrupt:
        return _fail("interrupted: run the same command again to continue", InterruptedRunError.exit_code)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mnist_ray"):
            raise
        return _fail(
            f"{sys.executable} lacks the package {error.name!r}: install requirements.txt there, or (on a cluster) "
            "activate the environment that has it before 'ray start'",
            SpecError.exit_code,
        )
    except MnistRayError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        if error.filename is None:
            if isinstance(error, FileNotFoundError) and _lost_its_folder():
                return _fail("the current folder was removed: change to one that exists (cd ~)", OSERROR_EXIT_CODE)
            return _fail(str(error), OSERROR_EXIT_CODE)
        message = f"{error.filename}: {error.strerror}: solve this problem, then run the same command again to continue"
        return _fail(message, OSERROR_EXIT_CODE)


def _lost_its_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _fail(message: str, code: int) -> int:
    print(f"mnist-ray: {shown(message)}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser that names the command that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Print a message of one line, and end with the code of a fault in the command."""
        if unknown := re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            name, known = unknown[1], re.findall(r"[\w-]+", unknown[2])
            near = get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            message = f"{name!r} is not a command: {remedy}"
        elif message.startswith("unrecognized arguments: "):
            message = f"{message}: '{self.prog} COMMAND --help' lists what a command takes"
        self.exit(SpecError.exit_code, f"{self.prog}: {shown(message)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mnist-ray",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mnist_ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    add_job_commands(commands)
    add_run_commands(commands)
    add_cluster_commands(commands)
    add_machine_commands(commands)
    add_spec_commands(commands)
    add_completion_command(commands, parser)
    return parser
