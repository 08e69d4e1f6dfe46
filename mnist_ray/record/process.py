"""Which process this is, in words that another process can check."""

import os
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "pid_started": start_of(os.getpid()), **place()}


def is_gone(process: dict[str, Any]) -> bool:
    """Whether a process of this place, as `this_process` described it, has ended; False for one of another place."""
    return place().items() <= process.items() and start_of(process["pid"]) != process["pid_started"]


def place() -> dict[str, str]:
    """Where a process id means the same process: this boot of this machine, and this container."""
    return {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "processes": str(Path("/proc/self/ns/pid").readlink()),
    }


def start_of(pid: int) -> str | None:
    """When a process began, in clock ticks since boot, so that its number used again is not taken for it.

    None for one that is gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the command's name before it may hold anything
    return None if state in "ZX" else fields[18]
