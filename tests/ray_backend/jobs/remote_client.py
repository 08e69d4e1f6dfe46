"""A client of a real head: commands in processes of their own, and a connection to the head that can be cut."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.ray_head import REPOSITORY, Head, free_ports

CANARY = "canary-7c41d2aa"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "HF_TOKEN": CANARY,
    "DATABASE_URL": f"postgresql://me:{CANARY}@localhost/db",
}


def client_environment(head: Head, **changes: str) -> dict[str, str]:
    """Return an environment with the head's token and with secrets that must not reach the cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"HOME": str(head.folder / "client"), "RAY_ADDRESS": head.dashboard, "PYTHONPATH": str(REPOSITORY)}
    return {**kept, **SECRETS, **own, **head.environment, **changes}


@dataclass(frozen=True)
class Command:
    """A command that runs, with the files of its output."""

    process: "subprocess.Popen[bytes]"
    output: Path
    errors: Path

    @property
    def stdout(self) -> str:
        return self.output.read_text()

    @property
    def stderr(self) -> str:
        return self.errors.read_text()

    def wait_for(self, text: str) -> None:
        for _ in range(600):
            if text in self.stdout:
                return
            assert self.process.poll() is None, self.stdout + self.stderr
            time.sleep(0.2)
        raise AssertionError(f"{text!r} was not printed: {self.stdout}{self.stderr}")

    def end(self) -> int:
        return self.process.wait(timeout=300)


def begin(folder: Path, head: Head, *arguments: str | Path, **changes: str) -> Command:
    """Start `mnist-ray` in a folder outside the repository."""
    number = len(list(folder.glob("*.output")))
    output, errors = folder / f"{number}.output", folder / f"{number}.errors"
    command = [sys.executable, "-m", "mnist_ray.cli", *map(str, arguments)]
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(
            command, cwd=folder, env=client_environment(head, **changes), stdout=out, stderr=err, start_new_session=True
        )
    return Command(process, output, errors)


def run(folder: Path, head: Head, *arguments: str | Path, **changes: str) -> Command:
    command = begin(folder, head, *arguments, **changes)
    command.end()
    return command


class Relay:
    """An address that relays to the head's dashboard until it is cut."""

    def __init__(self, dashboard: str) -> None:
        parts = urlsplit(dashboard)
        self._target = (parts.hostname or "", parts.port or 0)
        (self._port,) = free_ports(1)
        self._sockets: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._port}"
        self.restore()

    def restore(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=ends, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)
