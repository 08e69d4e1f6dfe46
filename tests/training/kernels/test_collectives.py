"""Exchanges between ranks, each played by a thread; processes: test_workers.py."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mnist_ray.training.kernels import collectives as exchange
from mnist_ray.training.kernels.collectives import CHUNK_BYTES, RankLostError, _Connections

SECRET = b"sixteen bytes ok"


def connected(world_size: int) -> list[_Connections]:
    ranks = [_Connections(rank, [None] * world_size) for rank in range(world_size)]
    for one in range(world_size):
        for other in range(one):
            pair = socket.socketpair()
            for end in pair:
                for kind in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, kind, exchange.BUFFER_BYTES)
            ranks[one].peers[other], ranks[other].peers[one] = pair
    return ranks


def close(ranks: list[_Connections]) -> None:
    for rank in ranks:
        for peer in rank.peers:
            if peer is not None:
                peer.close()


@pytest.mark.parametrize("num_values", [0, 1, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + 1, 3_000_000])
@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_gets_what_all_have_in_the_order_of_ranks(num_values: int, world_size: int) -> None:
    ranks = connected(world_size)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(num_values, generator=generator) for _ in ranks]

    def gather(rank: int) -> Tensor:
        return exchange._gathered(values[rank], ranks[rank])

    with ThreadPoolExecutor(world_size) as pool:
        for gathered in pool.map(gather, range(world_size), timeout=60):
            assert torch.equal(gathered, torch.stack(values))
    close(ranks)


def test_a_rank_that_is_gone_is_noticed() -> None:
    here, there = connected(2)
    close([there])
    with pytest.raises(RankLostError):
        exchange._gathered(torch.ones(3), here)
    close([here])


def test_whoever_does_not_know_the_secret_is_no_rank_and_whoever_says_nothing_keeps_nobody_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        callers = exchange._callers(server, SECRET)
        answered = pool.submit(next, callers)
        silent = socket.create_connection(("127.0.0.1", port))
        for said in (b"", b"short", bytes(len(SECRET) + 4)):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(said)
        caller = exchange._call(7, exchange._Place("127.0.0.1", port, SECRET))
        rank, peer = answered.result(timeout=exchange.CONNECT_S / 4)
        assert rank == 7
        callers.close()
        silent.settimeout(10)
        assert silent.recv(1) == b""  # let go when all ranks are there
        caller.sendall(b"on")
        assert peer.recv(2) == b"on"
        for end in (caller, peer, silent):
            end.close()
