"""A download is whole or absent, is done once for many processes, and ends in time."""

import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mnist_ray import data
from mnist_ray.errors import DataError
from tests.real_mnist import MNIST_NAMES, REAL_RAW, TRAIN_IMAGES, needs_mnist

pytestmark = pytest.mark.slow

UseMirrors = Callable[..., None]  # takes the addresses that torchvision is to have


class Mirror(ThreadingHTTPServer):
    """Real server of the real files. The first part of a path names its behaviour."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.requested: list[str] = []
        self.closing = threading.Event()

    def address(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/"


class MirrorHandler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        _, behaviour, name = self.path.split("/")
        body = (REAL_RAW / name).read_bytes()
        if behaviour == "absent" or (behaviour == "only-images" and "labels" in name):
            self.send_error(404)
            return
        if behaviour == "silent":
            self.server.closing.wait(60)
            return
        if behaviour == "creeping":  # a header that comes byte by byte keeps every socket timeout from ending
            with contextlib.suppress(ConnectionError):
                self.trickle(b"HTTP/1.0 200 OK\r\nX-Filler: " + b"." * 10_000)
            return
        if behaviour == "unhurried":  # slow enough for eight processes to meet
            time.sleep(0.3)
        if behaviour == "portal":  # as a network that wants its users to sign in first
            body = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
        self.send_response(200)
        if behaviour != "endless":
            self.send_header("Content-Length", str(len(body)))
        if behaviour == "encoded":  # as servers that take the file's own compression for theirs
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client gives up: what most of these are for
            self.send_body(behaviour, body)

    def send_body(self, behaviour: str, body: bytes) -> None:
        if behaviour == "cut":
            self.wfile.write(body[: len(body) // 2])
        elif behaviour == "wrong":
            self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))
        elif behaviour == "trickling":
            self.trickle(body)
        elif behaviour == "slowing":
            self.wfile.write(body[:-2000])
            self.trickle(body[-2000:])
        elif behaviour == "stalling" or (behaviour == "stalling-once" and len(self.server.requested) == 1):
            self.wfile.write(body[: len(body) // 2])
            self.server.closing.wait(60)
        elif behaviour == "resetting":
            self.wfile.write(body[: len(body) // 2])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif behaviour == "endless":
            while True:
                self.wfile.write(body)
        else:
            self.wfile.write(body)

    def trickle(self, body: bytes) -> None:
        for position in range(len(body)):
            self.wfile.write(body[position : position + 1])
            if self.server.closing.wait(0.05):
                return

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def use_mirrors(monkeypatch: pytest.MonkeyPatch) -> UseMirrors:
    def use(*addresses: str) -> None:
        from torchvision import datasets

        monkeypatch.setattr(datasets.MNIST, "mirrors", list(addresses))

    return use


def assert_nothing_of(name: str, data_dir: Path) -> None:
    left = [path.name for path in (data_dir / "MNIST" / "raw").iterdir()]
    assert not [found for found in left if name in found], left


@needs_mnist
def test_missing_files_are_downloaded(tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors) -> None:
    use_mirrors(mirror.address("good"))
    data.fetch("mnist", tmp_path)
    assert sorted(mirror.requested) == sorted(f"/good/{name}" for name in MNIST_NAMES)
    (tmp_path / "MNIST" / "raw" / TRAIN_IMAGES).unlink()
    data.fetch("mnist", tmp_path)
    assert mirror.requested[4:] == [f"/good/{TRAIN_IMAGES}"]
    assert len(data.load_training("mnist", tmp_path)) == 60_000
    data.fetch("mnist", tmp_path)
    assert len(mirror.requested) == 5


@needs_mnist
def test_files_stay_packed_and_readable(tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors) -> None:
    use_mirrors(mirror.address("encoded"))
    data.fetch("mnist", tmp_path)
    assert len(data.load_test("mnist", tmp_path)) == 10_000
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "MNIST" / "raw").glob("*.gz")}
    assert modes == dict.fromkeys(MNIST_NAMES, 0o644)


@needs_mnist
@pytest.mark.parametrize("failing", ["absent", "wrong", "cut", "portal", "resetting"])
def test_second_mirror_is_asked(tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors, failing: str) -> None:
    use_mirrors(mirror.address(failing), mirror.address("good"))
    data.fetch("mnist", tmp_path)
    assert data.load_test("mnist", tmp_path).labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert len(mirror.requested) == 8


@needs_mnist
@pytest.mark.parametrize("slow", ["silent", "stalling", "trickling", "creeping"])
def test_slow_mirror_is_asked_once(tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors, slow: str) -> None:
    """Four files, each waiting 20 s for the first mirror, would take longer than a minute."""
    use_mirrors(mirror.address(slow), mirror.address("good"))
    data.fetch("mnist", tmp_path, timeout_s=1)
    asked = [f"/{slow}/{MNIST_NAMES[0]}", *(f"/good/{name}" for name in MNIST_NAMES)]
    assert mirror.requested == asked
    assert len(data.load_training("mnist", tmp_path)) == 60_000


@needs_mnist
def test_slow_mirror_is_named_with_reason(tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors) -> None:
    use_mirrors(mirror.address("silent"), mirror.address("only-images"))
    with pytest.raises(DataError) as caught:
        data.fetch("mnist", tmp_path, timeout_s=0.5)
    labels = MNIST_NAMES[1]
    assert (
        f"{mirror.address('silent')}{labels}: not asked again (too slow, under 100 KiB/s for 0.5 s, 0 bytes in all)"
        in str(caught.value)
    )
    assert f"{mirror.address('only-images')}{labels}: 404 Client Error" in str(caught.value)


@needs_mnist
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("absent", "404"),
        ("wrong", "SHA-256"),
        ("portal", "55 bytes that begin with b'<!DOCTYPE html>'"),
        ("stalling", "too slow, under 100 KiB/s for 0.5 s"),
        ("slowing", "too slow"),
        ("resetting", "reset by peer|IncompleteRead"),
        ("cut", "4956211 bytes read, 4956211 more expected"),
        ("silent", "for 0.5 s, 0 bytes in all"),
        ("trickling", "too slow"),
        ("endless", "no file of a data set is so large"),
    ],
)
def test_failed_download_is_one_clear_error(
    tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors, behaviour: str, message: str
) -> None:
    use_mirrors(mirror.address(behaviour))
    started_s = time.monotonic()
    with pytest.raises(DataError) as caught:
        data.fetch("mnist", tmp_path, timeout_s=0.5)
    assert time.monotonic() - started_s < 15  # the servers would go on for longer
    error = str(caught.value)
    assert any(alternative in error for alternative in message.split("|")), error
    for part in (
        mirror.address(behaviour),
        *MNIST_NAMES,
        str(tmp_path / "MNIST" / "raw"),
        "--data-dir",
    ):
        assert part in error
    assert_nothing_of("ubyte", tmp_path)


def test_refused_connections_name_every_mirror(tmp_path: Path, use_mirrors: UseMirrors) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    addresses = [f"http://127.0.0.1:{port}/{mirror}/" for mirror in ("first", "second")]
    use_mirrors(*addresses)
    with pytest.raises(DataError, match="Connection refused") as caught:
        data.fetch("mnist", tmp_path)
    assert all(address in str(caught.value) for address in addresses)
    assert_nothing_of("ubyte", tmp_path)


def test_wrong_file_is_kept(tmp_path: Path, use_mirrors: UseMirrors) -> None:
    use_mirrors()
    file = data.DATA_SETS["mnist"].files[-1].path(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    with pytest.raises(DataError, match=file.name):
        data.fetch("mnist", tmp_path)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


class Fetchers:
    """Processes that fetch MNIST at once.

    Their torchvision is a list of one address, because importing the real one takes each two seconds of a processor.
    """

    PROGRAM = """
import resource, sys
from pathlib import Path
import mnist_ray.data.download
from mnist_ray import data
from mnist_ray.errors import DataError
folder, timeout_s, largest_bytes = sys.argv[1:]
if int(largest_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_bytes), int(largest_bytes)))
print("ready", flush=True)
sys.stdin.readline()
try:
    data.fetch("mnist", Path(folder), timeout_s=float(timeout_s))
except DataError as error:
    sys.exit(f"DataError: {error}")
"""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder / "data"
        self.raw = self.folder / "MNIST" / "raw"
        self.book = folder / "book"
        (self.book / "torchvision").mkdir(parents=True)
        (self.book / "torchvision" / "__init__.py").touch()
        (self.book / "torchvision" / "datasets.py").write_text(
            f"class MNIST:\n    mirrors = [{address!r}]\n    resources = []\n"
        )

    def start(self, count: int, timeout_s: float = 20, largest_bytes: int = 0) -> list[subprocess.Popen[str]]:
        root = Path(data.__file__).parents[2]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", self.PROGRAM, str(self.folder), str(timeout_s), str(largest_bytes)],
                env={**os.environ, "PYTHONPATH": f"{self.book}{os.pathsep}{root}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return processes


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Wait for all and return (exit status, stderr) of each."""
    outputs = [process.communicate(timeout=30) for process in processes]
    return [(process.returncode, errors) for process, (_, errors) in zip(processes, outputs, strict=True)]


@needs_mnist
def test_eight_processes_download_once(tmp_path: Path, mirror: Mirror) -> None:
    fetchers = Fetchers(tmp_path, mirror.address("unhurried"))
    assert ends(fetchers.start(8)) == [(0, "")] * 8
    assert sorted(mirror.requested) == sorted(f"/unhurried/{name}" for name in MNIST_NAMES)
    assert len(data.load_training("mnist", fetchers.folder)) == 60_000


@needs_mnist
def test_waiting_processes_share_a_failure(tmp_path: Path, mirror: Mirror) -> None:
    processes = Fetchers(tmp_path, mirror.address("silent")).start(3, timeout_s=1)
    for status, errors in ends(processes):
        assert status == 1
        assert errors.startswith("DataError")
        assert "under 100 KiB/s for 1 s" in errors
    assert len(mirror.requested) == 1


@needs_mnist
def test_killed_download_is_taken_over(tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors) -> None:
    fetchers = Fetchers(tmp_path, mirror.address("trickling"))
    (process,) = fetchers.start(1)
    raw = fetchers.folder / "MNIST" / "raw"
    while not list(raw.glob(".download-*/*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(raw.glob(".download-*/*"))

    use_mirrors(mirror.address("good"))
    data.fetch("mnist", fetchers.folder)
    assert not list(raw.glob(".download-*"))
    assert data.is_present("mnist", fetchers.folder)


def downloader(raw: Path) -> int:
    """Return the id of the process that downloads, once it has received something."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for unfinished in raw.glob(".download-*/*"):
            with contextlib.suppress(FileNotFoundError):
                if unfinished.stat().st_size:
                    return int(unfinished.parent.name.removeprefix(".download-"))
        time.sleep(0.02)
    raise AssertionError("no process downloads")


@needs_mnist
def test_another_process_replaces_a_killed_one(tmp_path: Path, mirror: Mirror) -> None:
    fetchers = Fetchers(tmp_path, mirror.address("stalling-once"))
    processes = fetchers.start(8)
    killed = downloader(fetchers.raw)
    os.kill(killed, signal.SIGKILL)
    outcomes = dict(zip([process.pid for process in processes], ends(processes), strict=True))
    assert outcomes.pop(killed) == (-signal.SIGKILL, "")
    assert list(outcomes.values()) == [(0, "")] * 7
    assert sorted(mirror.requested) == sorted(f"/stalling-once/{name}" for name in [MNIST_NAMES[0], *MNIST_NAMES])
    assert sorted(path.name for path in fetchers.raw.glob("*.gz")) == sorted(MNIST_NAMES)
    assert not list(fetchers.raw.glob(".download-*"))
    assert len(data.load_training("mnist", fetchers.folder)) == 60_000


@needs_mnist
def test_suspended_downloader_is_reported(tmp_path: Path, mirror: Mirror) -> None:
    fetchers = Fetchers(tmp_path, mirror.address("stalling"))
    (stopped,) = fetchers.start(1, timeout_s=30)
    assert downloader(fetchers.raw) == stopped.pid
    os.kill(stopped.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    try:
        for status, errors in ends(fetchers.start(3, timeout_s=0.4)):
            assert status == 1
            assert errors.startswith("DataError")
            for part in ("nothing for 1 s", f".download-{stopped.pid}/", "--data-dir"):
                assert part in errors
        assert time.monotonic() - started_s < 20
    finally:
        stopped.kill()
        stopped.communicate()


@needs_mnist
def test_torn_failure_file_is_ignored(tmp_path: Path, mirror: Mirror, use_mirrors: UseMirrors) -> None:
    use_mirrors(mirror.address("good"))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / ".download.failure").write_bytes("könnte".encode()[:2])
    data.fetch("mnist", tmp_path)
    assert data.is_present("mnist", tmp_path)


@needs_mnist
def test_full_disk_is_one_clear_error(tmp_path: Path, mirror: Mirror) -> None:
    fetchers = Fetchers(tmp_path, mirror.address("good"))
    ((status, errors),) = ends(fetchers.start(1, largest_bytes=100_000))
    assert status == 1
    assert errors.startswith("DataError")
    assert str(fetchers.folder / "MNIST" / "raw" / TRAIN_IMAGES) in errors
    assert "File too large (errno 27)" in errors
    assert_nothing_of("ubyte", fetchers.folder)
