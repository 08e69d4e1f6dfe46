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

from mnist_ray.training import progress_counter as pulse

CHUNK_BYTES = 1 << 16  # at most two of them are under way on a connection
BUFFER_BYTES = 1 << 18
CONNECT_S = 60.0
SECRET_BYTES = 16
PLACE_BYTES = 320  # a name of a host has at most 253


class RankLostError(RuntimeError):
    """Another process of the group is gone."""


class _Place(NamedTuple):
    """Where a rank can be called, and what a caller has to say first."""

    host: str
    port: int
    secret: bytes


@dataclass(frozen=True)
class _Connections:
    """To every other rank; None in this rank's own place."""

    rank: int
    peers: list[socket.socket | None]


_connections: _Connections | None = None
_exchanging_s = 0.0


def exchanging_s() -> float:
    """Seconds that this process has spent in exchanges between CPUs since it began, waiting for others included."""
    return _exchanging_s


def num_ranks() -> int:
    """1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed_over_ranks(values: Tensor) -> Tensor:
    """Add `values` over all ranks in place; every rank gets the same bits. Without a process group: as it is.

    Raises RankLostError.
    """
    if num_ranks() == 1:
        return values
    pulse.mark()
    if _connections is None:
        dist.all_reduce(values)
    else:
        torch.sum(_gathered(values, _connections), dim=0, out=values)
    pulse.mark()
    return values


def gathered_from_ranks(values: Tensor) -> Tensor:
    """values: (...) of this rank -> (ranks, ...), in the order of ranks, the same on every rank.

    Raises RankLostError.
    """
    if num_ranks() == 1:
        return values[None]
    pulse.mark()
    if _connections is None:
        gathered = values.new_empty(num_ranks(), *values.shape)
        dist.all_gather_into_tensor(gathered, values)
    else:
        gathered = _gathered(values, _connections)
    pulse.mark()
    return gathered


def _gathered(values: Tensor, connections: _Connections) -> Tensor:
    """Everybody sends a chunk to everybody, then receives one from everybody.

    Whoever sends a chunk has received all that came before it, so what the other has not read yet is at most the chunk
    before and this one, which the buffers hold: nobody waits for room while others wait for him.
    """
    global _exchanging_s
    began = time.perf_counter()
    gathered = values.new_empty(len(connections.peers), *values.shape)
    gathered[connections.rank] = values
    rows = [memoryview(row.numpy()).cast("B") for row in gathered.flatten(1)]
    try:
        for start in range(0, len(rows[0]), CHUNK_BYTES):
            _swap(connections, [row[start : start + CHUNK_BYTES] for row in rows])
    except OSError as error:
        raise RankLostError(f"the connection to another rank broke: {error}") from None
    _exchanging_s += time.perf_counter() - began
    return gathered


def _swap(connections: _Connections, chunks: list[memoryview]) -> None:
    for peer in connections.peers:
        if peer is not None:
            peer.sendall(chunks[connections.rank])
    for peer, chunk in zip(connections.peers, chunks, strict=True):
        if peer is not None:
            _receive(peer, chunk)


def _receive(peer: socket.socket, chunk: memoryview) -> None:
    while len(chunk):
        num_received = peer.recv_into(chunk)
        if num_received == 0:
            raise RankLostError("another rank closed its connection")
        chunk = chunk[num_received:]


# --- connecting --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected_ranks(host: str) -> Iterator[None]:
    """In every rank of a process group on CPUs: exchange over direct connections while the block lasts.

    host: this machine's address, as the other ranks reach it. Raises OSError.
    """
    global _connections
    if num_ranks() == 1:
        yield
        return
    _connections = _connect(dist.get_rank(), num_ranks(), host)
    try:
        yield
    finally:
        for peer in _connections.peers:
            if peer is not None:
                peer.close()
        _connections = None


def _connect(rank: int, world_size: int, host: str) -> _Connections:
    """Each rank calls those before it, and says by a secret, which the group shares, that it is one of them."""
    with socket.create_server((host, 0)) as server:
        secret = secrets.token_bytes(SECRET_BYTES)
        own_host, own_port = server.getsockname()[:2]
        places = _told_to_all(_Place(own_host, own_port, secret), world_size)
        peers: list[socket.socket | None] = [None] * world_size
        for other in range(rank):
            peers[other] = _call(rank, places[other])
        missing = set(range(rank + 1, world_size))
        with contextlib.closing(_callers(server, secret)) as callers:
            while missing:
                caller, peer = next(callers)
                if caller in missing:
                    peers[caller] = peer
                    missing.remove(caller)
    return _Connections(rank, peers)


def _told_to_all(mine: _Place, world_size: int) -> list[_Place]:
    """Every rank's place. As text: torch would unpickle objects, and gloo takes in whoever connects to it."""
    said = json.dumps([mine.host, mine.port, mine.secret.hex()]).encode().ljust(PLACE_BYTES)
    row = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    rows = [torch.empty_like(row) for _ in range(world_size)]
    dist.all_gather(rows, row)
    places = [json.loads(bytes(each.tolist())) for each in rows]
    return [_Place(host, port, bytes.fromhex(secret)) for host, port, secret in places]


def _call(rank: int, place: _Place) -> socket.socket:
    peer = _prepared(socket.create_connection((place.host, place.port), timeout=CONNECT_S))
    peer.sendall(place.secret + rank.to_bytes(4, "little"))
    return peer


def _callers(server: socket.socket, secret: bytes) -> Generator[tuple[int, socket.socket]]:
    """Those who know the secret, as they say it. Who does not is let go; who says nothing keeps nobody waiting.

    Raises TimeoutError if nobody of the group calls any more.
    """
    deadline = time.monotonic() + CONNECT_S
    with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as strangers:
        waiting.register(server, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            for key, _ in waiting.select(deadline - time.monotonic()):
                if key.fileobj is server:
                    peer, _ = server.accept()
                    strangers.callback(peer.close)
                    peer.setblocking(False)
                    waiting.register(peer, selectors.EVENT_READ, bytearray())
                elif _has_said(key, len(secret) + 4):
                    waiting.unregister(key.fileobj)
                    caller = key.fileobj
                    assert isinstance(caller, socket.socket)
                    if secrets.compare_digest(key.data[: len(secret)], secret):
                        rank = int.from_bytes(key.data[len(secret) :], "little")
                        yield rank, _prepared(caller.dup())
                    caller.close()
    raise TimeoutError(f"a rank has not called within {CONNECT_S:g} s")


def _has_said(key: selectors.SelectorKey, num_bytes: int) -> bool:
    """Take what has arrived; true at the end of what is awaited, or of what comes."""
    caller, said = key.fileobj, key.data
    assert isinstance(caller, socket.socket)
    received = b""
    with contextlib.suppress(OSError):
        received = caller.recv(num_bytes - len(said))
    said += received
    return not received or len(said) == num_bytes


def _prepared(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for kind in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        peer.setsockopt(socket.SOL_SOCKET, kind, BUFFER_BYTES)
    return peer
