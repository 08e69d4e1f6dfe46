"""The place that a tracker logs to, and the command that shows what is there."""

import os
import shlex
from pathlib import Path

from mnist_ray.errors import SpecError
from mnist_ray.record.paths import RunPaths
from mnist_ray.storage.object_stores import is_address

TRACKING_URI = "MLFLOW_TRACKING_URI"
MLFLOW_FOLDER = "_mlflow"  # beside the runs, none of whose names begins like that


def name_of(entry: str) -> str:
    """Return the tracker of an entry of `log_to`."""
    return entry.partition("=")[0]


def mlflow_address(entry: str, paths: RunPaths) -> str:
    """Return MLflow's tracking address: of the entry, of the environment, or of a folder beside the run.

    Raises SpecError where the run lies in an object store and the address is not given.
    """
    where = entry.partition("=")[2]
    if not where and (address := os.environ.get(TRACKING_URI)):
        return address
    if is_address(where):
        return where
    if not where and not isinstance(paths.folder, Path):
        raise SpecError(
            f"log_to mlflow: storage {paths.folder.parent} cannot hold MLflow's database: write mlflow=ADDRESS, or set "
            f"${TRACKING_URI}"
        )
    folder = Path(where).expanduser().absolute() if where else paths.folder.parent / MLFLOW_FOLDER
    return f"sqlite:///{folder / 'mlflow.db'}"  # MLflow 3 writes plain folders no more


def local_folder(address: str) -> Path | None:
    """Return the folder of an address of ours that is a database on this machine; None for any other."""
    path = Path(address.removeprefix("sqlite:///"))
    return path.parent if address.startswith("sqlite:///") else None


def how_to_look(entry: str, paths: RunPaths) -> str:
    """Return the command, or the address, that shows a run in a tracker. Raises as `mlflow_address`."""
    match name_of(entry):
        case "tensorboard":
            return f"tensorboard --logdir {shlex.quote(str(paths.tensorboard))}"
        case "optuna":
            return f"optuna-dashboard {shlex.quote(f'sqlite:///{paths.study}')}"
    address = mlflow_address(entry, paths)
    if local_folder(address):
        return f"mlflow server --backend-store-uri {shlex.quote(address)}"
    return f"${TRACKING_URI}" if address == os.environ.get(TRACKING_URI) else address  # which may hold a password
