"""How long a training takes, evaluation aside, and how long a step takes, captured and eager."""

import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mnist_ray.benchmarks.gpu.bench import ALL_PARTS, Bench, Check, epochs_s, some_batches
from mnist_ray.config import TrainingConfig
from mnist_ray.training.cuda_graph import captured_and_compared
from mnist_ray.training.loop import Steps

ALLOWED_S = 6.0  # 45 epochs of 60,000 images at batch 128, on an H100 or an H200


def measure_speed(bench: Bench) -> Iterator[Check]:
    """Measure a whole training after one that warmed up, an eager one, and single steps for each size of batch."""
    yield from _trainings(bench)
    for batch_size in bench.sizes.batch_sizes:
        yield _steps(bench, batch_size)


def _trainings(bench: Bench) -> Iterator[Check]:
    sizes, data = bench.sizes, bench.data_without_validation()
    config = TrainingConfig(num_epochs=sizes.num_epochs, batch_size=sizes.batch_size)
    shorter = config.model_copy(update={"num_epochs": sizes.num_eager_epochs})
    bench.train(data, shorter, bench.capture)
    began = time.perf_counter()
    captured = bench.train(data, config, bench.capture)
    wall_s = time.perf_counter() - began
    eager = bench.train(data, shorter, None)
    seconds, num_seen = epochs_s(captured), config.num_epochs * len(data.train)
    shared = {"batch_size": config.batch_size, "precision": config.precision, "tf32": _tf32()}
    figures = shared | {
        "epochs": config.num_epochs,
        "images": len(data.train),
        "steps": captured.steps,
        "seconds": round(seconds, 3),
        "allowed": None if bench.is_rehearsal else ALLOWED_S,
        "images_per_s": round(num_seen / seconds),
        "start_up_s": round(wall_s - seconds, 3),
        "train_accuracy": captured.history[-1].train.accuracy,
    }
    is_ok = captured.steps == "captured" and (bench.is_rehearsal or seconds <= ALLOWED_S)
    yield Check("training, evaluation aside", figures, is_ok)
    per_epoch = [epochs_s(state) / len(state.history) for state in (eager, captured)]
    figures = shared | {
        "eager_epochs": shorter.num_epochs,
        "eager_epoch_s": round(per_epoch[0], 4),
        "captured_epoch_s": round(per_epoch[1], 4),
        "eager_to_captured": round(per_epoch[0] / per_epoch[1], 2),
    }
    yield Check("training, eager and captured", figures)


def _tf32() -> dict[str, bool]:
    return {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}


def _steps(bench: Bench, batch_size: int) -> Check:
    """Return medians of rounds in turns: milliseconds of a step, and of an epoch by multiplication."""
    data, sizes = bench.data(), bench.sizes
    takers: dict[str, Steps] = {}
    for name, parts in (("captured", {}), ("all parts captured", ALL_PARTS)):
        takers[name] = steps = bench.steps(data, batch_size, parts=parts)
        steps.captured = captured_and_compared(steps, len(data.train), batch_size, bench.device, bench.capture)
    takers["eager"] = bench.steps(data, batch_size)
    batches = some_batches(len(data.train), batch_size, sizes.num_steps_timed, bench.device)
    rounds: dict[str, list[float]] = {name: [] for name in takers}
    for _ in range(sizes.num_rounds + 1):
        for name, steps in takers.items():
            rounds[name].append(_seconds_of(bench, steps, batches) / len(batches))
    medians = {name: statistics.median(each[1:]) for name, each in rounds.items()}  # the first round warms up
    figures = {
        "batch_size": batch_size,
        "step_ms": {name: round(1e3 * median, 4) for name, median in medians.items()},
        "epoch_s": {name: round(median * len(data.train) / batch_size, 3) for name, median in medians.items()},
        "eager_to_captured": round(medians["eager"] / medians["captured"], 2),
    }
    return Check("a step", figures)


def _seconds_of(bench: Bench, steps: Steps, batches: Sequence[Tensor]) -> float:
    bench.synchronize()
    began = time.perf_counter()
    for batch in batches:
        steps.take(batch, len(batch))
    bench.synchronize()
    return time.perf_counter() - began
