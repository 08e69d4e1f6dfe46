"""Small vectors between the processes that train together, over connections of their own.

On the CPU a step of a small network has five exchanges of a few hundred bytes to 70 KB, and each is waited for. gloo
hands each to threads of its own: 0.6 to 1.1 ms in the middle of work on two busy cores, where sending and receiving in
the thread that trains takes 0.06 ms (docs/decisions/0007-exchange.md). GPUs exchange over NCCL.
"""

import contextlib
import json
import secrets
import selectors
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mnist_ray.training.distributed import exchanging_over, num_ranks

CHUNK_BYTES = 1 << 16  # at most two of them are under way on a connection
BUFFER_BYTES = 1 << 18
CONNECT_S = 60.0
SECRET_BYTES = 16
ADDRESS_BYTES = 320  # a name of a host has at most 253


class RankLostError(RuntimeError):
    """Another process of the group is gone."""


@dataclass(frozen=True)
class Connections:
    """Sockets to every other rank; None at this rank's own index. An Exchange (mnist_ray.training.distributed)."""

    rank: int
    peers: list[socket.socket | None]

    def gathered(self, values: Tensor) -> Tensor:
        """Return the (...) of every rank as (ranks, ...), in the order of ranks. Raises RankLostError.

        Each rank sends a chunk to all others, then receives one from each. A rank that sends a chunk has received all
        chunks before it, so at most the chunk before and this one are unread at the other end. The buffers hold
        both: no rank waits for room while others wait for that rank.
        """
        gathered = values.new_empty(len(self.peers), *values.shape)
        gathered[self.rank] = values
        rows = [memoryview(row.numpy()).cast("B") for row in gathered.view(len(self.peers), values.numel())]
        try:
            for start in range(0, len(rows[0]), CHUNK_BYTES):
                self._swap([row[start : start + CHUNK_BYTES] for row in rows])
        except OSError as error:
            raise RankLostError(f"the connection to another rank broke: {error}") from None
        return gathered

    def close(self) -> None:
        """Close every socket."""
        for peer in self.peers:
            if peer is not None:
                peer.close()

    def _swap(self, chunks: list[memoryview]) -> None:
        for peer in self.peers:
            if peer is not None:
                peer.sendall(chunks[self.rank])
        for peer, chunk in zip(self.peers, chunks, strict=True):
            while peer is not None and len(chunk):
                num_received = peer.recv_into(chunk)
                if num_received == 0:
                    raise RankLostError("another rank closed its connection")
                chunk = chunk[num_received:]


# --- connecting ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected_ranks(host: str) -> Iterator[None]:
    """In every rank of a process group on CPUs: exchange over direct connections while the block lasts.

    host: this machine's address, as the other ranks reach it. Raises OSError.
    """
    if num_ranks() == 1:
        yield
        return
    connections = _connect(dist.get_rank(), num_ranks(), host)
    try:
        with exchanging_over(connections):
            yield
    finally:
        connections.close()


class _Address(NamedTuple):
    """An address at which a rank accepts connections, and the secret that a caller has to send first."""

    host: str
    port: int
    secret: bytes


def _connect(rank: int, world_size: int, host: str) -> Connections:
    """Call the ranks before this one and accept those after it.

    A caller proves by a secret, which the group shares, that it is one of the ranks.
    """
    with socket.create_server((host, 0)) as server:
        secret = secrets.token_bytes(SECRET_BYTES)
        own_host, own_port = server.getsockname()[:2]
        addresses = _addresses_of_all(_Address(own_host, own_port, secret), world_size)
        peers: list[socket.socket | None] = [None] * world_size
        for other in range(rank):
            peers[other] = _call(rank, addresses[other])
        missing = set(range(rank + 1, world_size))
        with contextlib.closing(_accepted(server, secret)) as callers:
            while missing:
                caller, peer = next(callers)
                if caller in missing:
                    peers[caller] = peer
                    missing.remove(caller)
    return Connections(rank, peers)


def _addresses_of_all(own: _Address, world_size: int) -> list[_Address]:
    """Exchange addresses over gloo. As text: torch would unpickle objects, and gloo accepts any connection."""
    text = json.dumps([own.host, own.port, own.secret.hex()]).encode().ljust(ADDRESS_BYTES)
    row = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = [torch.empty_like(row) for _ in range(world_size)]
    dist.all_gather(rows, row)
    addresses = [json.loads(bytes(each.tolist())) for each in rows]
    return [_Address(host, port, bytes.fromhex(secret)) for host, port, secret in addresses]


def _call(rank: int, address: _Address) -> socket.socket:
    peer = _prepared(socket.create_connection((address.host, address.port), timeout=CONNECT_S))
    peer.sendall(address.secret + rank.to_bytes(4, "little"))
    return peer


def _accepted(server: socket.socket, secret: bytes) -> Generator[tuple[int, socket.socket]]:
    """Yield rank and socket of each caller that sends the secret. A silent caller delays no other.

    Raises TimeoutError if no rank calls any more.
    """
    deadline = time.monotonic() + CONNECT_S
    with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as callers:
        waiting.register(server, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            for key, _ in waiting.select(deadline - time.monotonic()):
                if key.fileobj is server:
                    peer, _ = server.accept()
                    callers.callback(peer.close)
                    peer.setblocking(False)
                    waiting.register(peer, selectors.EVENT_READ, bytearray())
                elif _is_complete(key, len(secret) + 4):
                    waiting.unregister(key.fileobj)
                    caller = key.fileobj
                    assert isinstance(caller, socket.socket)
                    if secrets.compare_digest(key.data[: len(secret)], secret):
                        rank = int.from_bytes(key.data[len(secret) :], "little")
                        yield rank, _prepared(caller.dup())
                    caller.close()
    raise TimeoutError(f"a rank has not called within {CONNECT_S:g} s")


def _is_complete(key: selectors.SelectorKey, num_bytes: int) -> bool:
    """Receive what has arrived; return whether that is all of `num_bytes`, or all that comes."""
    caller, message = key.fileobj, key.data
    assert isinstance(caller, socket.socket)
    received = b""
    with contextlib.suppress(OSError):
        received = caller.recv(num_bytes - len(message))
    message += received
    return not received or len(message) == num_bytes


def _prepared(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for kind in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        peer.setsockopt(socket.SOL_SOCKET, kind, BUFFER_BYTES)
    return peer
