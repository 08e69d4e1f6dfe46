"""Arguments that several commands share."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_ray.storage.files import StoragePath

DEFAULT_STORAGE = "results"
WORK = ("run", "search", "train", "submit", "stop", "fetch", "report", "export")


def add_command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command that is run by calling `command`; `text` is its help.

    A command that does work succeeds where its output cannot be written; of any other the output is all that it does.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command, is_work=name in WORK)
    return parser


def add_overrides(job: argparse.ArgumentParser) -> None:
    """Add --name, --set and --log-to to a command."""
    job.add_argument("--name", help="the run's name (default: the spec's)")
    job.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value: search.num_trials=50",
    )
    job.add_argument(
        "--log-to",
        action="append",
        metavar="TRACKER",
        help="show the run while it goes on: tensorboard, optuna, mlflow, mlflow=ADDRESS_OR_FOLDER (may be repeated)",
    )


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return --set, --name, --data-dir, --storage and --log-to as `load_spec` takes them."""
    overrides = list(arguments.set)
    for key, value in (
        ("name", arguments.name),
        ("data.dir", arguments.data_dir),
        ("storage", arguments.storage),
        ("log_to", arguments.log_to),
    ):
        if value is not None:
            overrides.append(f"{key}={json.dumps(value)}")  # in quotes, also where YAML would read a number or a date
    return overrides


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add --storage to a command."""
    text = "the folder that holds the runs, or s3://BUCKET/FOLDER (default: the spec's, then ./results)"
    parser.add_argument("--storage", help=text)


def storage_of(arguments: argparse.Namespace) -> "StoragePath":
    """Return the folder that holds the runs. Raises SpecError."""
    from mnist_ray.config import check_storage
    from mnist_ray.storage.files import storage_path

    storage = arguments.storage or DEFAULT_STORAGE
    check_storage(storage)
    return storage_path(storage)
