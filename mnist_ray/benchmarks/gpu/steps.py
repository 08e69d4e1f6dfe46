"""Captured steps, eager ones and those of the CPU agree."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from mnist_ray.benchmarks.gpu.bench import (
    ALL_PARTS,
    ALLOWED_ACCURACY,
    Bench,
    Check,
    are_close,
    as_it_takes_them,
    eagerly,
    some_batches,
    val_accuracy,
)
from mnist_ray.config import Precision, TrainingConfig
from mnist_ray.training.cuda_graph import TOLERANCE, Trajectory, captured_and_compared, largest_difference, trajectory
from mnist_ray.training.distributed import Worker
from mnist_ray.training.loop import Steps, TrainState

ALLOWED_ACROSS_DEVICES = 1e-3  # of a loss, in ten steps without TF32


def check_steps(bench: Bench) -> Iterator[Check]:
    """Compare ten steps, many steps and whole trainings, taken in two ways each."""
    cases: list[tuple[int, Precision, dict[str, Any]]] = [(size, "float32", {}) for size in bench.sizes.batch_sizes]
    cases += [(bench.sizes.batch_size, "bfloat16", {}), (bench.sizes.batch_size, "float32", ALL_PARTS)]
    for batch_size, precision, parts in cases:
        yield _capture_is_accepted(bench, batch_size, precision, parts)
    yield _many_steps(bench)
    yield _trainings(bench, {})
    yield _trainings(bench, ALL_PARTS)
    yield _against_cpu(bench)


def _capture_is_accepted(bench: Bench, batch_size: int, precision: Precision, parts: dict[str, Any]) -> Check:
    """Compare ten steps as a training does before it trusts a capture."""
    data = bench.data()
    steps = bench.steps(data, batch_size, precision, parts)
    began = time.perf_counter()
    captured = captured_and_compared(steps, len(data.train), batch_size, bench.device, bench.capture)
    bench.synchronize()
    seconds = time.perf_counter() - began
    batches = some_batches(len(data.train), batch_size, 10, bench.device)
    eager = trajectory(steps, batches, eagerly(steps))
    noise = largest_difference(eager, trajectory(steps, batches, eagerly(steps)))
    steps.captured = captured
    figures = {
        "batch_size": batch_size,
        "precision": precision,
        "parts": parts,
        "difference": largest_difference(eager, trajectory(steps, batches, as_it_takes_them(steps))),
        "eager_to_eager": noise,
        "allowed": TOLERANCE,
        "seconds": round(seconds, 3),
    }
    return Check("ten captured steps against ten eager ones", figures, bool(captured))


def _many_steps(bench: Bench) -> Check:
    """Take many steps both ways from one state; the summed losses must agree, the rest is reported."""
    data, batch_size = bench.data(), bench.sizes.batch_size
    steps = bench.steps(data, batch_size)
    captured = captured_and_compared(steps, len(data.train), batch_size, bench.device, bench.capture)
    batches = some_batches(len(data.train), batch_size, bench.sizes.num_steps_compared, bench.device)
    eager, again = (trajectory(steps, batches, eagerly(steps)) for _ in range(2))
    steps.captured = captured
    replayed = trajectory(steps, batches, as_it_takes_them(steps))

    def of_loss(other: Trajectory) -> float:
        return abs(float(other.losses.sum() / eager.losses.sum()) - 1)

    figures = {
        "steps": len(batches),
        "summed_loss_difference": of_loss(replayed),
        "largest_difference": largest_difference(eager, replayed),
        "eager_to_eager_loss": of_loss(again),
        "eager_to_eager_largest": largest_difference(eager, again),
        "allowed": TOLERANCE,
    }
    return Check("many captured steps against eager ones", figures, bool(captured) and of_loss(replayed) <= TOLERANCE)


def _trainings(bench: Bench, parts: dict[str, Any]) -> Check:
    """Train two epochs both ways from the same seed. parts: of the config."""
    data, config = bench.data(), TrainingConfig(num_epochs=2, batch_size=bench.sizes.batch_size, **parts)
    states = [bench.train(data, config, capture) for capture in (None, bench.capture)]
    modes, accuracies = [state.steps for state in states], [val_accuracy(state) for state in states]
    figures = {
        "parts": parts,
        "steps": modes,
        "val_accuracy": accuracies,
        "allowed": ALLOWED_ACCURACY,
        "second_epoch_s": [round(state.history[-1].elapsed_s, 3) for state in states],
    }
    return Check("training of two epochs", figures, modes == ["eager", "captured"] and are_close(accuracies))


def _against_cpu(bench: Bench) -> Check:
    """Compare ten losses of the fast kernels on the CPU with those of plain torch on the GPU, dropout off."""
    config = TrainingConfig(num_epochs=1, dropout=0.0, batch_size=bench.sizes.batch_size)
    losses = {}
    for device, allow_tf32 in ((torch.device("cpu"), False), (bench.device, False), (bench.device, True)):
        data, worker = bench.data(device), Worker(device=device)
        state = TrainState.initial(config, data.statistics, worker)
        steps = Steps.of(state, data.train, config, worker)
        batches = some_batches(len(data.train), config.batch_size, 10, device)
        torch.backends.cudnn.allow_tf32 = allow_tf32  # on by default, which is how the last of the three leaves it
        losses[device.type, allow_tf32] = trajectory(steps, batches, eagerly(steps)).losses.cpu()
    expected = losses["cpu", False]
    exact, with_tf32 = (float((losses[bench.device.type, allow] / expected - 1).abs().max()) for allow in (False, True))
    figures = {"difference": exact, "with_tf32": with_tf32, "allowed": ALLOWED_ACROSS_DEVICES}
    return Check("ten losses, CPU's kernels against plain torch on the GPU", figures, exact <= ALLOWED_ACROSS_DEVICES)
