"""What several ranks use, in a group of one: exchanges over NCCL, and batch normalisation over the global batch.

One GPU cannot have two ranks of NCCL. A group of one leaves out what it need not do, so that is called here directly.
A rehearsal exchanges over gloo and normalises as CPUs do.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SynchronisedNormalisation

from mnist_ray.benchmarks.gpu.bench import (
    ALLOWED_ACCURACY,
    Bench,
    Check,
    are_close,
    eagerly,
    some_batches,
    val_accuracy,
)
from mnist_ray.config import TrainingConfig
from mnist_ray.training import distributed
from mnist_ray.training.batch_norm import GlobalBatchNorm2d
from mnist_ray.training.cuda_graph import TOLERANCE, Trajectory, largest_difference, trajectory
from mnist_ray.training.distributed import Worker

NUM_GRADIENTS = 17_578  # of the network: 70 KB
NUM_EXCHANGES = 100
TIMEOUT = timedelta(minutes=2)
ALLOWED_OF_NORMALISATION = 1e-4  # the largest relative difference; float32 sums in another order
COUNTER = "num_batches_tracked"  # is counted by the module, which is passed by here


def check_ranks(bench: Bench) -> Iterator[Check]:
    """Exchange, normalise, take ten steps as a rank does, and train in a group of one."""
    data, config = bench.data(), TrainingConfig(num_epochs=2, batch_size=bench.sizes.batch_size)
    alone = bench.train(data, config, bench.capture)
    with _group_of_one(bench) as backend:
        yield _exchanges(bench, backend)
        yield _normalisation(bench, backend)
        yield _steps_of_a_rank(bench, backend)
        grouped = bench.train(data, config, bench.capture)
    accuracies = [val_accuracy(alone), val_accuracy(grouped)]
    modes = [alone.steps, grouped.steps]
    figures = {"backend": backend, "steps": modes, "val_accuracy": accuracies, "allowed": ALLOWED_ACCURACY}
    is_ok = modes == ["captured", "captured"] and are_close(accuracies)
    yield Check("training of two epochs without a group and in a group of one", figures, is_ok)


@contextmanager
def _group_of_one(bench: Bench) -> Iterator[str]:
    """Form a process group of this process alone; yields its backend."""
    backend = "gloo" if bench.is_rehearsal else "nccl"
    with tempfile.TemporaryDirectory(prefix="mr-") as folder:
        store = dist.FileStore(str(Path(folder, "meeting")), 1)  # type: ignore[attr-defined]  # documented
        dist.init_process_group(backend, store=store, timeout=TIMEOUT, world_size=1, rank=0)
        try:
            yield backend
        finally:
            dist.destroy_process_group()


def _exchanges(bench: Bench, backend: str) -> Check:
    """Sum, gather and send a vector as long as the network's gradients."""
    values = torch.arange(NUM_GRADIENTS, dtype=torch.float32, device=bench.device)
    summed, sent, gathered = values.clone(), values.clone(), torch.empty_like(values)
    dist.all_reduce(summed)
    dist.broadcast(sent, src=0)
    dist.all_gather_into_tensor(gathered, values)
    are_equal = [bool(each.equal(values)) for each in (summed, sent, gathered)]
    bench.synchronize()
    began = time.perf_counter()
    for _ in range(NUM_EXCHANGES):
        dist.all_reduce(summed)
    bench.synchronize()
    milliseconds = 1e3 * (time.perf_counter() - began) / NUM_EXCHANGES
    figures = {"backend": backend, "equal": are_equal, "sum_of_gradients_ms": round(milliseconds, 4)}
    return Check("exchanges", figures, all(are_equal))


def _normalisation(bench: Bench, backend: str) -> Check:
    """Normalise one batch as several ranks do and as one does; compare outputs, gradients and running statistics."""
    synchronised = GlobalBatchNorm2d(32) if bench.is_rehearsal else nn.SyncBatchNorm(32)
    with mock.patch.object(nn.SyncBatchNorm, "forward", _synchronised):
        found = _normalised(synchronised, bench.device)
    expected = _normalised(nn.BatchNorm2d(32), bench.device)
    difference = max(
        float((ours - plain).abs().max() / plain.abs().max()) for ours, plain in zip(found, expected, strict=True)
    )
    figures = {"backend": backend, "difference": difference, "allowed": ALLOWED_OF_NORMALISATION}
    return Check(
        "synchronised batch normalisation against torch's own", figures, difference <= ALLOWED_OF_NORMALISATION
    )


def _normalised(norm: nn.Module, device: torch.device) -> list[Tensor]:
    """Return outputs, gradients and running statistics of a step on random images, (64, 32, 13, 13)."""
    generator = torch.Generator().manual_seed(2)
    images, upstream = (torch.randn(64, 32, 13, 13, generator=generator).to(device) for _ in range(2))
    images = images.to(memory_format=torch.channels_last).requires_grad_()
    outputs = norm.to(device).train()(images)
    (outputs * upstream).sum().backward()
    gradients = [images.grad, *(parameter.grad for parameter in norm.parameters())]
    buffers = [buffer for name, buffer in norm.named_buffers() if name != COUNTER]
    return [each.detach() for each in (outputs, *gradients, *buffers) if each is not None]


def _steps_of_a_rank(bench: Bench, backend: str) -> Check:
    """Take ten steps with the modules and the exchanges of several ranks, and ten with those of one."""
    data, batch_size = bench.data(), bench.sizes.batch_size
    batches = some_batches(len(data.train), batch_size, 10, bench.device)
    plain = bench.steps(data, batch_size, parts={"dropout": 0.0})
    of_a_rank = bench.steps(data, batch_size, parts={"dropout": 0.0}, modules_of=Worker(0, 2, bench.device))
    expected = trajectory(plain, batches, eagerly(plain))
    with (
        mock.patch.object(nn.SyncBatchNorm, "forward", _synchronised),
        mock.patch.object(distributed, "num_ranks", return_value=2),
    ):
        exchanging_s = distributed.exchanging_s()
        found = trajectory(of_a_rank, batches, eagerly(of_a_rank))
        exchanging_s = distributed.exchanging_s() - exchanging_s
    difference = largest_difference(_without_counters(expected), _without_counters(found))
    figures = {"backend": backend, "difference": difference, "allowed": TOLERANCE}
    is_ok = exchanging_s > 0 and difference <= TOLERANCE
    return Check("ten steps of a rank, gradients exchanged, against ten without a group", figures, is_ok)


def _synchronised(norm: nn.SyncBatchNorm, images: Tensor) -> Any:
    """Normalise as SyncBatchNorm does among several ranks while it trains; alone it is plain batch normalisation."""
    moments, settings = (norm.running_mean, norm.running_var), (norm.eps, norm.momentum)
    return SynchronisedNormalisation.apply(images, norm.weight, norm.bias, *moments, *settings, dist.group.WORLD, 1)


def _without_counters(found: Trajectory) -> Trajectory:
    return replace(found, movement={name: each for name, each in found.movement.items() if COUNTER not in name})
