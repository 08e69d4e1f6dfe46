"""What this machine and a cluster can do, as lines for people."""

import os
import platform
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mnist_ray import __version__, data
from mnist_ray.errors import SpecError
from mnist_ray.ray_backend.cluster import PACKAGES_ON_EVERY_NODE, address_in_use, connected, local_capacity
from mnist_ray.storage.files import StoragePath, remove, write_atomic


@dataclass(frozen=True)
class Finding:
    what: str
    is_good: bool
    text: str


def examine(data_dir: Path, storage: StoragePath, address: str | None) -> list[Finding]:
    """Versions, CPUs and GPUs, data sets, storage, and the cluster if there is one to join."""
    findings = [Finding("mnist_ray", True, f"{__version__}, Python {platform.python_version()}")]
    findings += [_package(name) for name in PACKAGES_ON_EVERY_NODE]
    findings += [_devices(), *_data_sets(data_dir), _storage(storage)]
    if address_in_use(address) != "local":
        findings.append(_cluster(address))
    return findings


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, "missing: install requirements.txt")


def _devices() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("devices", True, f"{local_capacity().cpus} CPUs, {len(gpus)} GPUs {', '.join(gpus)}".rstrip())


def _data_sets(folder: Path) -> list[Finding]:
    found = {True: "found", False: "not there, downloaded when a job needs it"}
    return [
        Finding(f"data {name}", True, f"{found[data.is_present(name, folder)]} ({folder})") for name in data.DATA_SETS
    ]


def _storage(storage: StoragePath) -> Finding:
    if not isinstance(storage, Path):
        return _store(storage)
    place = storage.absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(os.urandom(4096))
    except OSError as error:
        return Finding("storage", False, f"{place} cannot be written: {error.strerror}")
    return Finding("storage", True, f"{place}, {shutil.disk_usage(existing).free / 1e9:.0f} GB free")


def _store(storage: StoragePath) -> Finding:
    probe = storage / f".probe-{uuid.uuid4().hex}"
    try:
        write_atomic(probe, b"mnist_ray")
        remove(probe)
    except OSError as error:
        return Finding("storage", False, f"{storage} cannot be written: {error.strerror}")
    return Finding("storage", True, str(storage))


def _cluster(address: str | None) -> Finding:
    try:
        with connected(address, None, verbose=False) as capacity:
            return Finding("cluster", True, f"{capacity.cpus} CPUs, {capacity.gpus} GPUs, same versions on every node")
    except SpecError as error:
        return Finding("cluster", False, str(error))
