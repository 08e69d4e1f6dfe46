"""What the commands' arguments have in common."""

import argparse
import json
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def add_overrides(job: argparse.ArgumentParser) -> None:
    job.add_argument("--name", help="the run's name (default: the spec's)")
    job.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value: search.num_trials=50",
    )


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Of --set, --name, --data-dir and --storage, as `load_spec` takes them."""
    overrides = list(arguments.set)
    for key, value in (
        ("name", arguments.name),
        ("data.dir", arguments.data_dir),
        ("storage", arguments.storage),
    ):
        if value is not None:
            overrides.append(f"{key}={_quoted(value)}")
    return overrides


def _quoted(text: str) -> str:
    """A command-line text is that text, also where YAML would read a number or a date."""
    return json.dumps(text)
