"""A finished run, made once, of which each test gets a copy to spoil; and a disk that takes nothing."""

import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mnist_ray.cli.main import main
from mnist_ray.config import JobSpec, dump_spec
from mnist_ray.data import load_training
from mnist_ray.record.rundir import RunDir
from tests.faults.made_run import NAME, made_spec, make_finished_run, make_open_run

Notes = Callable[[], list[str]]
NOWHERE = "127.0.0.1:1"  # joining it fails, so what works with it starts no Ray


@dataclass(frozen=True)
class MadeRun:
    """A storage folder with one run, and beside it the files that a user gives to commands."""

    folder: Path

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def run(self) -> RunDir:
        return RunDir(self.storage / NAME)

    @property
    def spec(self) -> JobSpec:
        return made_spec(self.storage)

    @property
    def spec_file(self) -> Path:
        return self.folder / "given" / "spec.yaml"

    @property
    def image(self) -> Path:
        return self.folder / "given" / "digit.png"

    def commands(self) -> dict[str, list[str]]:
        """Return the commands that a user has for a run, by name: the arguments of `mnist-ray`."""
        given: dict[str, list[str | Path]] = {
            "list": ["results"],
            "compare": ["compare", NAME, NAME],
            "report": ["report", NAME],
            "evaluate": ["evaluate", NAME],
            "predict": ["predict", self.image, "--run", NAME],
            "predict with the latest": ["predict", self.image],
            "resume": ["run", self.spec_file, "--address", NOWHERE],
        }
        return {name: [*map(str, arguments), "--storage", str(self.storage)] for name, arguments in given.items()}

    def do(self, name: str) -> int:
        """Run a command and return its exit code."""
        return main(self.commands()[name])


def _with_inputs(made: MadeRun) -> MadeRun:
    from PIL import Image

    made.image.parent.mkdir()
    Image.fromarray(load_training("digits", Path()).images[0, 0]).save(made.image)
    made.spec_file.write_text(dump_spec(made.spec))
    return made


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    made = _with_inputs(MadeRun(tmp_path_factory.mktemp("finished")))
    make_finished_run(made.storage)
    return made


@pytest.fixture
def finished(finished_once: MadeRun, tmp_path: Path) -> Iterator[MadeRun]:
    """Yield a copy of a finished run."""
    made = MadeRun(Path(shutil.copytree(finished_once.folder, tmp_path / "copy")))
    yield made
    shutil.rmtree(made.folder)


@pytest.fixture
def interrupted(tmp_path: Path) -> MadeRun:
    """Return a run whose search was killed."""
    made = _with_inputs(MadeRun(tmp_path))
    make_open_run(made.storage)
    return made


class SmallDisk:
    """A file system in memory, mounted at `path`."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)

    def change(self, *options: str) -> None:
        """Mount the disk again with these options of `mount`: size=10m, ro, rw."""
        subprocess.run(["mount", "-o", ",".join(["remount", *options]), self.path], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)


@dataclass(frozen=True)
class DiskThatTakesNothing:
    disk: SmallDisk
    message: str
    errno: int

    @property
    def path(self) -> Path:
        return self.disk.path

    def mend(self) -> None:
        self.disk.change("size=10m", "rw")


@pytest.fixture(params=["full", "read-only"])
def bad_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DiskThatTakesNothing]:
    """Yield the disk with the checkpoints of a run named "small": 64 kB where one takes 0.2 MB, or read-only."""
    disk = SmallDisk(tmp_path / "small" / "checkpoints", "64k")
    if request.param == "read-only":
        disk.change("ro")
    number = errno.ENOSPC if request.param == "full" else errno.EROFS
    yield DiskThatTakesNothing(disk, os.strerror(number), number)
    disk.unmount()


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Notes:
    """Return a function that gives the log lines so far about groups of workers."""
    name = "mnist_ray.ray_backend.train.supervisor"
    caplog.set_level(logging.INFO, name)
    return lambda: [record.getMessage() for record in caplog.records if record.name == name]
