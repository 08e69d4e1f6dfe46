"""Machines with addresses of their own on one host: network namespaces, each with its own processes and /tmp.

Needs root. Nothing of the machine's own network is touched.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tests.ray_head import BIN, REPOSITORY

PREFIX = f"mr{os.getpid()}"
NET = "10.77.0"
NOTHING: Mapping[str, str] = MappingProxyType({})
OWN_FOLDERS = "mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && exec "


@dataclass
class Machine:
    """One network namespace. `start` runs a process that ends with the machine, `run` a command on it."""

    name: str
    address: str
    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"{PREFIX}-{self.name}"

    @property
    def log(self) -> Path:
        return self.home / f"{self.name}.log"

    def start(self, *command: str | Path) -> None:
        """Start a process in process, mount and host name spaces of the machine; its output goes to `log`."""
        words = " ".join(shlex.quote(str(word)) for word in command)
        unshared = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
        whole = [*unshared, f"hostname {self.name} && {OWN_FOLDERS}{words}"] if not self.processes else list(command)
        with self.log.open("a") as log:
            inside = [*self._inside(), *map(str, whole)]
            self.processes.append(
                subprocess.Popen(inside, env=self._environment(), stdout=log, stderr=log, cwd=self.home)
            )

    def run(
        self, *command: str | Path, timeout_s: float = 120, changes: Mapping[str, str] = NOTHING
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end. changes: to the machine's environment."""
        return subprocess.run(
            [*self._inside(), *map(str, command)],
            env=self._environment(changes), cwd=self.home, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip

    def open(
        self, *command: str | Path, output: Path, changes: Mapping[str, str] = NOTHING
    ) -> "subprocess.Popen[bytes]":
        """Start a command whose output goes to a file."""
        with output.open("w") as log:
            return subprocess.Popen(
                [*self._inside(), *map(str, command)],
                env=self._environment(changes), cwd=self.home, stdout=log, stderr=log,
            )  # fmt: skip

    def commands(self) -> list[str]:
        """Return the command lines of the machine's processes."""
        pids = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        commands = []
        for pid in pids.stdout.split():
            with contextlib.suppress(OSError):
                commands.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
        return commands

    def lose(self) -> None:
        """Take the link down, then end all processes, as when a machine loses its power."""
        _ip("-n", self.namespace, "link", "set", "e0", "down")
        self.end()
        _ip("-n", self.namespace, "link", "set", "e0", "up")

    def end(self) -> None:
        """Kill all processes of the machine."""
        for process in self.processes:
            for child in _children(process.pid):  # of the first one: with it all others there die
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait(timeout=60)
        self.processes.clear()

    def _inside(self) -> list[str]:
        """Return the words that run a command on the machine, in the /tmp that holds its Ray's sockets."""
        first = [child for process in self.processes[:1] for child in _children(process.pid)]
        joined = ["nsenter", f"--target={first[0]}", "--mount", "--uts", "--pid"] if first else []
        return ["ip", "netns", "exec", self.namespace, *joined]

    def _environment(self, changes: Mapping[str, str] = {}) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MNIST_RAY"))}
        own |= {"HOME": str(self.home), "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
        return {**own, "OMP_NUM_THREADS": "1", **self.environment, **changes}


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def network(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Machine]]:
    """Make machines on one switch, by name, each with a home below `folder`; end them after the block.

    SIGTERM ends the block too; by default it would leave the namespaces and their processes.
    """
    switch = f"{PREFIX}-switch"
    machines = {}
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "sw", "type", "bridge")
        _ip("-n", switch, "link", "set", "sw", "up")
        for number, name in enumerate(names, start=1):
            (folder / name).mkdir(parents=True)
            machines[name] = Machine(name, f"{NET}.{number}", folder / name)
            _plug_in(machines[name], switch)
        yield machines
    finally:
        for machine in machines.values():
            machine.end()
        for namespace in [*(machine.namespace for machine in machines.values()), switch]:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        signal.signal(signal.SIGTERM, before)


def _plug_in(machine: Machine, switch: str) -> None:
    space, port = machine.namespace, f"p-{machine.name}"
    _ip("netns", "add", space)
    _ip("-n", space, "link", "add", "e0", "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", "sw", "up")
    _ip("-n", space, "addr", "add", f"{machine.address}/24", "dev", "e0")
    for link in ("lo", "e0"):
        _ip("-n", space, "link", "set", link, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def wait_for(what: str, holds: Callable[[], bool], seconds: float, every_s: float = 0.5) -> None:
    """Return once a condition holds. Raises RuntimeError if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not there within {seconds:g} s")
        time.sleep(every_s)
