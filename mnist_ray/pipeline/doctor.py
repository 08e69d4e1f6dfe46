"""An examination of this machine, its data and its storage, as lines for people."""

import os
import platform
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from mnist_ray import __version__, data
from mnist_ray.errors import DataError
from mnist_ray.pipeline.capacity import local_capacity
from mnist_ray.pipeline.provenance import gpu_names, installed_versions
from mnist_ray.storage.files import StoragePath, remove, write_atomic


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    what: str
    is_good: bool
    text: str


def examine(data_dir: Path, storage: StoragePath) -> list[Finding]:
    """Examine versions, CPUs and GPUs, data sets and storage."""
    findings = [Finding("mnist_ray", True, f"{__version__}, Python {platform.python_version()}")]
    for name, installed in installed_versions().items():
        is_missing = installed == "none"
        findings.append(Finding(name, not is_missing, "missing: install requirements.txt" if is_missing else installed))
    gpus = gpu_names()
    devices = f"{local_capacity().cpus} CPUs, {len(gpus)} GPUs {', '.join(gpus)}".rstrip()
    findings.append(Finding("devices", True, devices))
    for name in data.DATA_SETS:
        try:
            findings.append(Finding(f"data {name}", True, f"{data.presence(name, data_dir)} ({data_dir})"))
        except DataError as error:
            findings.append(Finding(f"data {name}", False, str(error)))
    return [*findings, _storage(storage)]


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
