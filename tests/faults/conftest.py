"""A disk that is full, for tests of what that does."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory, mounted at `path`."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)

    def grow(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """With room for 64 kB, where a checkpoint takes 0.2 MB; where a run named "small" keeps its checkpoints."""
    disk = SmallDisk(tmp_path / "small" / "checkpoints", "64k")
    yield disk
    disk.unmount()
