"""Watching the processes of Ray without which a driver can do nothing: the head's state (GCS) and its own raylet.

Ray ends the driver when one of them is gone, some at once and some after a minute, with exit codes of its own. A raylet
ends itself and its driver when one of its two agents dies, within a twentieth of a second. So the agents of a raylet
that this process started are watched too, and this process ends at once, which loses nothing that is published.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from mnist_ray.errors import InterruptedRunError

LOOK_S = 0.1  # Ray may end this process half a second after its raylet
SILENT_S = 60.0  # a port that does not answer, for so long: its host is gone, or more than busy
AGAIN = "run the same command again to continue"
END_S = 5.0  # for a process that was killed
LEAVE_S = 20.0  # for the end of Ray's own library in this process
AGENTS = {  # by a part of the command line, before and after it is replaced by a title
    "dashboard/agent.py": "Ray's dashboard agent",
    "ray::DashboardAgent": "Ray's dashboard agent",
    "runtime_env/agent/main.py": "Ray's agent for environments",
    "ray::RuntimeEnvAgent": "Ray's agent for environments",
}

logger = logging.getLogger(__name__)


class ServiceWatch(threading.Thread):
    """A thread that looks at Ray's services, and interrupts the main thread when one is gone.

    services: HOST:PORT by the service's name. agents: process ids by the agent's name.
    """

    def __init__(self, services: Mapping[str, str], agents: Mapping[str, int]) -> None:
        super().__init__(daemon=True, name="ray-services")
        self._services = services
        self._agents = agents
        self._silent_since: dict[str, float] = {}
        self._closed = threading.Event()
        self.lost: str | None = None  # what died, as a sentence's beginning

    def run(self) -> None:
        """Look until a service is gone or the watch is closed."""
        with contextlib.ExitStack() as stack:
            ends = select.poll()
            names = {}
            for name, pid in self._agents.items():
                with contextlib.suppress(ProcessLookupError):  # the raylet ends too then, and is noticed
                    handle = stack.enter_context(open(os.pidfd_open(pid)))  # noqa: PTH123
                    ends.register(handle, select.POLLIN)  # once the process has ended
                    names[handle.fileno()] = f"{name} (process {pid})"
            while not self._closed.is_set():
                for ended, _ in ends.poll(1000 * LOOK_S):
                    if not self._closed.is_set():  # otherwise Ray is being shut down
                        _leave(f"{names[ended]} has died: {AGAIN}")
                if self.look():
                    logger.warning("%s: ending the run", self.lost)  # now: Ray may end this process at once
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    def look(self) -> bool:
        """Report whether a service is gone, and note which."""
        for name, address in self._services.items():
            if self.lost is None and self._is_gone(name, address):
                self.lost = f"{name} ({address}) has died"
        return self.lost is not None

    def close(self) -> None:
        self._closed.set()

    def _is_gone(self, name: str, address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=3).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return time.monotonic() - self._silent_since.setdefault(name, time.monotonic()) > SILENT_S
        self._silent_since.pop(name, None)
        return False


@contextlib.contextmanager
def watched(services: Mapping[str, str], agents: Mapping[str, int] = MappingProxyType({})) -> Iterator[ServiceWatch]:
    """Watch Ray's services for a block. Raises InterruptedRunError, whatever else was raised, if one died."""
    watch = ServiceWatch(services, agents)
    watch.start()
    try:
        yield watch
    except (Exception, KeyboardInterrupt):
        if watch.look():
            raise InterruptedRunError(f"{watch.lost}: {AGAIN}") from None
        raise
    finally:
        watch.close()


def agents_of_own_raylet() -> dict[str, int]:
    """Return the process ids of the agents of a raylet that this process started, by name."""
    processes = processes_of_own_raylet()
    return {name: pid for pid, command in processes.items() for part, name in AGENTS.items() if part in command}


def processes_of_own_raylet() -> dict[int, str]:
    """Return the command lines of all processes of a raylet that this process started, by process id."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            stat = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (folder / "cmdline").read_text(errors="replace")
            parents[int(folder.name)], commands[int(folder.name)] = int(stat[1]), command.replace("\0", " ")
    raylets = {pid for pid, parent in parents.items() if parent == os.getpid() and "raylet" in commands[pid]}
    return {pid: command for pid, command in commands.items() if parents[pid] in raylets}


class ProcessHandles:
    """Processes that are to be gone once Ray was shut down.

    A raylet's agents live on for a second or more by themselves. A worker may never end.
    """

    def __init__(self) -> None:
        self._handles: list[int] = []

    def hold(self, pids: Iterable[int]) -> None:
        """Take more processes; those that have ended already are left out."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self._handles.append(os.pidfd_open(pid))

    def end(self) -> None:
        """Kill those that still live, and wait until they are gone."""
        for handle in self._handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in self._handles:
            select.select([handle], [], [], END_S)
            os.close(handle)
        self._handles = []


def leave_within(seconds: float, message: str) -> None:
    """End this process with a message and the code of an interruption, unless it has ended by itself before."""

    def leave() -> None:
        time.sleep(seconds)
        _leave(message)

    threading.Thread(target=leave, daemon=True).start()


def _leave(message: str) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        print(f"mnist-ray: {message}", file=sys.stderr, flush=True)
    os._exit(InterruptedRunError.exit_code)
