"""The address of a Ray cluster: where the user gave it, and what answers there. Importing it imports no Ray."""

import contextlib
import os
import re
import socket
import time
from dataclasses import dataclass

from mnist_ray.errors import SpecError
from mnist_ray.ray_backend.compat import HeadAnswer, address_of_started_cluster, ask_head, running_heads

LOCAL = "local"
VARIABLE = "RAY_ADDRESS"
ANSWER_S = 5.0  # a head that is busy answers within a second
GREETING_BYTES = 2000


@dataclass(frozen=True)
class Target:
    """The cluster to join.

    address: HOST:PORT of its head, "auto", or "local" for a new cluster of this process alone.
    origin: what named it, "--address" or "RAY_ADDRESS".
    """

    address: str
    origin: str = "--address"

    @property
    def is_local(self) -> bool:
        return self.address == LOCAL

    @property
    def named(self) -> str:
        """The address beside its origin, without anything secret."""
        return f"{self.origin}={shown(self.address)}" if self.origin == VARIABLE else f"{self.origin} {self.shown}"

    @property
    def shown(self) -> str:
        return shown(self.address)

    @property
    def way_out(self) -> str:
        """What a user types instead, to use no cluster."""
        is_variable = self.origin == VARIABLE
        return f"{f'unset {VARIABLE}' if is_variable else 'leave --address out'} to use this machine alone"


def target_of(address: str | None) -> Target:
    """Return the cluster to join: `address`, else $RAY_ADDRESS (of a job: its own cluster), else a new local one."""
    if address:
        return Target(address)
    if from_environment := os.environ.get(VARIABLE):
        return Target(from_environment, VARIABLE)
    return Target(LOCAL)


def shown(address: str) -> str:
    """Return an address without a user's name, password and query, so that anybody may read it."""
    scheme, separator, rest = address.rpartition("://")
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2]


def checked_head(target: Target) -> str:
    """Return HOST:PORT of a Ray head that answers at a target. Raises SpecError within seconds if none does."""
    address = _started_here(target) if target.address == "auto" else target.address
    if "://" in address:
        kind = "a dashboard or web server" if address.startswith("http") else "another kind of server"
        raise SpecError(
            f"{target.named}: is the address of {kind}; a run joins a Ray head, at HOST:6379. To send a job to a "
            "dashboard, use 'mnist-ray submit'"
        )
    host, port = _parts(target, address)
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        reason = "no answer within 3 s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise SpecError(
            f"{target.named}: no Ray cluster answers there ({reason}): start one with 'cluster/machines/head.sh', or "
            f"{target.way_out}"
        ) from None
    answer = ask_head(address, ANSWER_S)
    if answer is HeadAnswer.OTHER:
        raise SpecError(
            f"{target.named}: {_what_answers(host, port)}, and no Ray head: name the head's HOST:PORT (6379 by "
            f"default), or {target.way_out}"
        )
    return address


def _parts(target: Target, address: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?([^\s/@?]+?)\]?:(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise SpecError(f"{target.named}: is not the address of a head: write HOST:PORT, such as HEAD:6379")
    return match[1], int(match[2])


def _started_here(target: Target) -> str:
    """Return the address of the cluster that `ray start` made on this machine; private clusters are not joined."""
    if address := address_of_started_cluster():
        return address
    found = running_heads()
    others = f"; Ray runs at {', '.join(found)}, private to the process that started it" if found else ""
    raise SpecError(
        f"{target.named}: no Ray cluster was started on this machine with 'ray start'{others}: name the cluster to "
        f"join as HOST:PORT, or {target.way_out}"
    )


def _what_answers(host: str, port: int) -> str:
    """Describe the server at an address by the first line of what it says, within three seconds."""
    try:
        said = _greeting(host, port)
    except OSError:
        said = b""
    lines = said.decode("latin-1").splitlines()
    if not lines:
        return "something accepts connections there but does not answer"
    if b'"ray_version"' in said or b"Unauthorized: " in said:
        return "a Ray dashboard answers there ('mnist-ray submit' takes its address as http://HOST:PORT)"
    if lines[0].startswith("HTTP/"):
        server = next((line.partition(":")[2].strip() for line in lines if line.lower().startswith("server:")), "")
        return f"a web server answers there{f' ({_plain(server)})' if server else ''}"
    return f"something else answers there ('{_plain(lines[0])}')"


def _greeting(host: str, port: int) -> bytes:
    give_up_at, said = time.monotonic() + 3, b""
    with socket.create_connection((host, port), timeout=1) as connection:
        connection.sendall(f"GET /api/version HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            while len(said) < GREETING_BYTES and time.monotonic() < give_up_at:
                if not (more := connection.recv(GREETING_BYTES)):
                    break
                said += more
    return said


def _plain(text: str) -> str:
    """Return a stranger's text without anything that a terminal obeys."""
    return "".join(letter for letter in text if letter.isprintable() and letter.isascii())[:60]
