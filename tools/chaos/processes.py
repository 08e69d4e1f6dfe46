"""The processes that a driver brings with it: which there are, what each is for, and how one is killed."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["driver", "trial", "rank", "other"]

# How Ray titles the process of a trial (Tune's function trainable) and of a rank (Train's worker).
TITLES: dict[Role, str] = {"trial": "ray::ImplicitFunc", "rank": "ray::RayTrainWorker"}
# Services of Ray's node rather than workers: the node ends itself when it loses one.
SERVICES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass(frozen=True)
class Process:
    pid: int
    started: int  # clock ticks since the machine's start: with the pid it names one process for good
    title: str  # its command line, as it stands now

    @property
    def role(self) -> Role | None:
        """What a worker is for; None for what is no worker."""
        for role, title in TITLES.items():
            if self.title.startswith(title):
                return role
        is_worker = self.title.startswith("ray::") and not self.title.startswith(SERVICES)
        return "other" if is_worker else None


def of_session(leader: int) -> list[Process]:
    """The living processes of the session that `leader` began, by pid; those that outlived it too.

    Ray gives its workers process groups of their own, but leaves them in the session.
    """
    found = (_read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted((process for process, session in _known(found) if session == leader), key=lambda found: found.pid)


def _known(found: Iterator[tuple[Process, int] | None]) -> Iterator[tuple[Process, int]]:
    yield from (entry for entry in found if entry is not None)


def _read(pid: int) -> tuple[Process, int] | None:
    """A process and its session; None if it is gone or only waits to be buried."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, _, _, session, *rest = stat.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return Process(pid, int(rest[15]), title.replace(b"\0", b" ").decode(errors="replace").strip()), int(session)


def kill(process: Process) -> bool:
    """SIGKILL to that very process; False if it has ended, also where its pid has gone to another."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        found = _read(process.pid)
        if found is None or found[0].started != process.started:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
    return True
