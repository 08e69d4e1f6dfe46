"""Secrets of the environment and of addresses reach no file of a run and no message; a real job shows it.

The job goes on with an interrupted run in whose folder payloads lie, which it must not run either.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.cli.main import main
from tests.faults.conftest import MadeRun
from tests.faults.made_run import LEFTOVERS, record_files
from tests.faults.test_no_code import PAYLOADS, kinds_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CANARY = "canary-5b1f0c9e"
SECRETS = {
    **dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "HF_TOKEN"), CANARY),
    "DATABASE_URL": f"postgresql://someone:{CANARY}@localhost/db",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": f"{CANARY}-0123456789abcdef0123456789abcdef",
}


def leaks(folder: Path) -> list[Path]:
    """The files below a folder that hold a secret."""
    found = []
    for path in folder.rglob("*"):
        try:
            content = path.read_bytes()
        except OSError:  # a folder, a socket, or gone meanwhile
            continue
        if CANARY.encode() in content:
            found.append(path)
    return found


@pytest.fixture
def ray_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))  # short: sockets lie below it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def plant_everywhere(made: MadeRun, marker: Path) -> None:
    """In place of every file but the record's, and of those that a killed run may leave."""
    run = made.run
    there = {path for path in run.path.rglob("*") if path.is_file()} - set(record_files(run))
    for path in there | {run.path / name for name in LEFTOVERS}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PAYLOADS[kinds_for(path)[0]](marker))


def test_job_keeps_secrets_among_payloads(interrupted: MadeRun, ray_dir: Path, tmp_path: Path) -> None:
    marker = tmp_path / "a payload ran"
    plant_everywhere(interrupted, marker)
    (ray_dir / "home").mkdir()
    environment = {**os.environ, **SECRETS, "PYTHONPATH": str(ROOT), "HOME": str(ray_dir / "home"), "RAY_ADDRESS": ""}
    command = [
        sys.executable,
        "-m",
        "mnist_ray.cli",
        "run",
        interrupted.spec_file,
        "--storage",
        interrupted.storage,
    ]
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [*map(str, command), "--ray-dir", str(ray_dir)], env=environment, stdout=output, stderr=output, cwd=tmp_path
        )
        found = set()
        try:
            while process.poll() is None:  # meanwhile Ray's own files lie there too
                found |= {*leaks(interrupted.storage), *leaks(ray_dir)}
                time.sleep(1.0)
        finally:
            process.kill()
            process.wait(60)
        output.seek(0)
        printed = output.read()
    assert process.returncode == 0, printed
    assert not marker.exists()
    assert interrupted.run.state.tested, printed
    assert {*found, *leaks(interrupted.storage)} == set()
    assert CANARY not in printed


def test_leak_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_bytes(b"\x00" + SECRETS["RAY_AUTH_TOKEN"].encode())
    (tmp_path / "other").write_text("nothing")
    assert leaks(tmp_path) == [tmp_path / "deep" / "log"]


@pytest.mark.parametrize(
    "address",
    [
        f"http://someone:{CANARY}@127.0.0.1:1",
        f"ray://{CANARY}@127.0.0.1:1",
        f"someone:{CANARY}@127.0.0.1:1",
        f"127.0.0.1:1?token={CANARY}",
        f"http://127.0.0.1:1/?token={CANARY}",
    ],
)
@pytest.mark.parametrize("how", ["--address", "RAY_ADDRESS", "doctor"])
def test_password_in_address_is_hidden(
    finished: MadeRun,
    address: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage = ["--storage", str(finished.folder / "another")]
    command = ["doctor", *storage] if how == "doctor" else ["run", str(finished.spec_file), *storage]
    if how == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:
        command += ["--address", address]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert CANARY not in printed.out + printed.err
    assert "127.0.0.1:1" in printed.out + printed.err
    assert leaks(finished.folder) == []


def test_password_of_proxy_is_hidden(
    finished: MadeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("urllib.request._opener", None)  # where the proxies of the first use are kept
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://someone:{CANARY}@127.0.0.1:9")
    arguments = ["run", str(ROOT / "jobs" / "mnist.yaml"), "--data-dir", str(finished.folder / "data")]
    assert main([*arguments, "--storage", str(finished.folder / "another")]) == 3
    printed = capsys.readouterr()
    assert "could not be downloaded" in printed.err
    assert CANARY not in printed.out + printed.err
    assert leaks(finished.folder) == []
