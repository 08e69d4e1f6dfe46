"""A real object store for tests: SeaweedFS with its S3 gateway, on loopback, with its own ports and folder.

A plugin rather than a conftest, because folders beside one another share it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_head import BIN, free_ports

ACCESS, SECRET = "a-key-of-the-tests", "canary-of-the-store-77aa01"
IDENTITY = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


MAKE = """
import sys, time, s3fs
store = s3fs.S3FileSystem()
store.mkdir(sys.argv[1])
for attempt in range(200):  # until there is a volume to write to
    try:
        store.pipe_file(f"{sys.argv[1]}/ready", b"yes")
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("nothing can be written")
"""


class S3Server:
    """What listens, and what a client needs to get in."""

    bucket = "s3://tests"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        master, volume, filer, s3, *grpc = free_ports(8)
        self._endpoint = f"http://127.0.0.1:{s3}"
        self._command = [
            str(BIN / "weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=20",
            f"-master.port={master}", f"-master.port.grpc={grpc[0]}", "-master.telemetry=false",
            f"-volume.port={volume}", f"-volume.port.grpc={grpc[1]}",
            "-filer", f"-filer.port={filer}", f"-filer.port.grpc={grpc[2]}",
            "-s3", f"-s3.port={s3}", f"-s3.port.grpc={grpc[3]}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-s3.config={folder / 'identity.json'}",
        ]  # fmt: skip
        (folder / "identity.json").write_text(json.dumps(IDENTITY))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._folder)
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self._endpoint}/status", timeout=5).close()
                return
            time.sleep(0.1)
        raise RuntimeError(f"the store did not start:\n{(self._folder / 'log').read_text()[-3000:]}")

    def make_bucket(self) -> None:
        """In a process of its own: s3fs cannot be used in a fork of one that has used it, and tests fork."""
        environment = {**os.environ, **self.environment}
        subprocess.run([sys.executable, "-c", MAKE, self.bucket], env=environment, check=True, timeout=120)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=60)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    folder = Path(tempfile.mkdtemp(prefix="mnist-ray-s3-"))
    server = S3Server(folder)
    server.start()
    server.make_bucket()
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a folder of one's own, with the credentials in this process's environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{s3_server.bucket}/{uuid.uuid4().hex[:12]}"
