"""What a run was made with, so that somebody can repeat it and see what differs."""

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import mnist_ray

PACKAGE = Path(mnist_ray.__file__).parent


def provenance() -> dict[str, Any]:
    """Of this process: source_sha256, git_commit and git_is_dirty (None outside a repository), hardware."""
    return {"source_sha256": source_sha256(), **_git(), "hardware": hardware()}


def hardware() -> dict[str, Any]:
    """This machine's processor, and its GPUs' names."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"processor": processor(), "gpus": gpus}


def processor() -> str:
    """Its model and, since clouds hide that, its family and model number."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    name = facts.get("model name", platform.machine())
    return f"{name}, family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"


def source_sha256() -> str:
    """Over the package's Python files, names and contents in order: equal wherever the code is equal."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git() -> dict[str, Any]:
    """Of the repository that holds the package itself; an installed package's surroundings are none of its."""
    if not (PACKAGE.parent / ".git").exists():
        return {"git_commit": None, "git_is_dirty": None}
    commit = _git_says("rev-parse", "HEAD")
    status = _git_says("status", "--porcelain", "--", ".")
    return {"git_commit": commit, "git_is_dirty": None if status is None else bool(status)}


def _git_says(*arguments: str) -> str | None:
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
