"""The identity of a process, in terms that another process can check."""

import os
from pathlib import Path

from mnist_ray.record.events import ProcessIdentity


def this_process() -> ProcessIdentity:
    """Describe the calling process."""
    return ProcessIdentity(os.getpid(), start_of(os.getpid()), *_where())


def is_gone(process: ProcessIdentity) -> bool:
    """Report whether a process has ended; False for a process of another machine, boot or container."""
    return runs_here(process) and start_of(process.pid) != process.pid_started


def runs_here(process: ProcessIdentity) -> bool:
    """Report whether a process id of `process` means the same process here: same boot, machine and container."""
    return (process.boot, process.processes) == _where()


def _where() -> tuple[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return boot, str(Path("/proc/self/ns/pid").readlink())


def start_of(pid: int) -> str | None:
    """Return when a process began, in clock ticks since boot; None for a process that is gone.

    With the start a process id that is used again is not mistaken for the earlier process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the command's name before it may hold anything
    return None if state in "ZX" else fields[18]
