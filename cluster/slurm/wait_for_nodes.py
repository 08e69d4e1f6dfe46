"""Wait until a Ray cluster has so many nodes. Exit code 4, with the reason, if they do not come."""

import argparse
import os
import socket
import sys
import threading
import time
from pathlib import Path

NEVER_STARTED = 4  # as a run that could not train (mnist_ray/errors.py)
WAIT_S = 300.0  # nodes of a busy file system take minutes to import Ray


def listens(address: str) -> bool:
    """Report whether a process accepts connections at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True


def num_nodes(address: str) -> int:
    """Return the number of living nodes; 0 before the head answers."""
    if not listens(address):
        return 0
    import ray

    if not ray.is_initialized():
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    return sum(node["Alive"] for node in ray.nodes())


def is_running(pid: int) -> bool:
    """Report whether a process of this user runs; one that has ended and was not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Watch(threading.Thread):
    """Ends this process when a node did not start or the time is over, even while Ray waits for an answer.

    Ray waits for minutes where something else listens at the head's address.
    """

    def __init__(self, pids: list[int], seconds: float, count: int) -> None:
        super().__init__(daemon=True)
        self._pids, self._seconds, self._count = pids, seconds, count
        self.num_there = 0

    def run(self) -> None:
        give_up_at = time.monotonic() + self._seconds
        while all(map(is_running, self._pids)) and time.monotonic() < give_up_at:
            time.sleep(0.5)
        there = f"{self.num_there} of {self._count}"
        if time.monotonic() < give_up_at:
            reason = f"a node of Ray did not start ({there} are there): see above"
        else:
            reason = f"{there} nodes joined within {self._seconds:g} s"
        os.write(2, f"{reason}\n".encode())
        os._exit(NEVER_STARTED)


def main() -> int:
    """Return 0 once the nodes are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="of the head: HOST:PORT")
    parser.add_argument("count", type=int, help="the number of nodes")
    parser.add_argument("--while-running", type=int, nargs="+", default=[], help="processes that start the nodes")
    parser.add_argument("--seconds", type=float, default=WAIT_S, help="how long to wait")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    watch = Watch(options.while_running, options.seconds, options.count)
    watch.start()
    while watch.num_there < options.count:
        watch.num_there = num_nodes(options.address)
        time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
