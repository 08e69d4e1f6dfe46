"""Exchanges between ranks, each a thread here; processes: test_distributed.py."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mnist_ray.training.kernels import collectives
from mnist_ray.training.kernels.collectives import CHUNK_BYTES, Connections, RankLostError

SECRET = b"sixteen bytes ok"


def connected(world_size: int) -> list[Connections]:
    ranks = [Connections(rank, [None] * world_size) for rank in range(world_size)]
    for one in range(world_size):
        for other in range(one):
            pair = socket.socketpair()
            for end in pair:
                for kind in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, kind, collectives.BUFFER_BYTES)
            ranks[one].peers[other], ranks[other].peers[one] = pair
    return ranks


def close(ranks: list[Connections]) -> None:
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("num_values", [0, 1, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + 1, 3_000_000])
@pytest.mark.parametrize("world_size", [2, 3])
def test_values_are_gathered_in_rank_order(num_values: int, world_size: int) -> None:
    ranks = connected(world_size)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(num_values, generator=generator) for _ in ranks]

    def gather(rank: int) -> Tensor:
        return ranks[rank].gathered(values[rank])

    with ThreadPoolExecutor(world_size) as pool:
        for gathered in pool.map(gather, range(world_size), timeout=60):
            assert torch.equal(gathered, torch.stack(values))
    close(ranks)


def test_a_lost_rank_raises() -> None:
    here, there = connected(2)
    close([there])
    with pytest.raises(RankLostError):
        here.gathered(torch.ones(3))
    close([here])


def test_callers_without_the_secret_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        callers = collectives._accepted(server, SECRET)
        answered = pool.submit(next, callers)
        silent = socket.create_connection(("127.0.0.1", port))
        for said in (b"", b"short", bytes(len(SECRET) + 4)):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(said)
        caller = collectives._call(7, collectives._Address("127.0.0.1", port, SECRET))
        rank, peer = answered.result(timeout=collectives.CONNECT_S / 4)
        assert rank == 7
        callers.close()
        silent.settimeout(10)
        assert silent.recv(1) == b""  # let go when all ranks are there
        caller.sendall(b"on")
        assert peer.recv(2) == b"on"
        for end in (caller, peer, silent):
            end.close()
