"""The code, the packages and the machine of a run, so that somebody can repeat it and see what differs."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mnist_ray
from mnist_ray.record.events import Provenance

PACKAGE = Path(mnist_ray.__file__).parent


def provenance(with_gpus: bool) -> Provenance:
    """Describe this process: the code, its repository's state, the processor and the GPUs' names.

    with_gpus: name the GPUs, for which torch is imported.
    """
    commit, is_dirty = _repository()
    return Provenance(source_sha256(), commit, is_dirty, processor(), gpu_names() if with_gpus else ())


def gpu_names() -> tuple[str, ...]:
    """Name the GPUs that torch can use here."""
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def processor() -> str:
    """Name this machine's processor: its model and, since clouds hide that, its family and model number."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    name = facts.get("model name", platform.machine())
    return f"{name}, family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"


def source_sha256() -> str:
    """Hash the package's Python files, names and contents in order: equal wherever the code is equal."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _repository() -> tuple[str | None, bool | None]:
    """Return the commit, and whether files differ from it; None outside the repository that holds the package."""
    if not (PACKAGE.parent / ".git").exists():
        return None, None
    status = _git("status", "--porcelain", "--", ".")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# What the nodes of a cluster must have, in the driver's versions; the package itself travels with the job.
PACKAGES_ON_EVERY_NODE = ("ray", "torch", "torchvision", "optuna", "numpy")


def installed_versions() -> dict[str, str]:
    """Return the versions of PACKAGES_ON_EVERY_NODE in this process; "none" for a missing one."""
    versions = {}
    for name in PACKAGES_ON_EVERY_NODE:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return versions
