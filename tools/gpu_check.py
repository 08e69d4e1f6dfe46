"""Check captured CUDA steps on a machine with a GPU: python tools/gpu_check.py [--data-dir FOLDER]

Needs torch and mnist_ray.training with what they import (pydantic, PyYAML, universal-pathlib), no Ray and no network.
Prints one JSON line for each check and exits 1 if one fails. Is meant to take less than two minutes.
FOLDER holds MNIST's four IDX files, packed or not, at any depth; without it images are made up.
With `--device cpu` it is a rehearsal: what would be a captured step is computed.
"""

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_ray.config import Precision, TrainingConfig
from mnist_ray.data import LabelledImages, pixel_statistics
from mnist_ray.training import loop
from mnist_ray.training.cuda_graph import (
    TOLERANCE,
    Capture,
    Trajectory,
    as_cuda_graph,
    captured_and_compared,
    largest_difference,
    trajectory,
)
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.kernels.selection import PLAIN, Kernels
from mnist_ray.training.loop import Steps, TrainState, fit

BATCH_SIZES = (32, 128, 512)
NUM_VALIDATION = 5000
NUM_LONG = 200  # steps of the long comparison
NUM_ROUNDS = 5
ALLOWED_ACCURACY = 0.003  # between two trainings of two epochs, captured and eager
ALLOWED_ACROSS_DEVICES = 1e-3  # of a loss, in ten steps without TF32
ALL_PARTS: dict[str, Any] = {"schedule": "cosine", "ema": 0.1, "augment": 1.0, "weight_decay": 0.01}


@dataclass(frozen=True)
class Check:
    """The machine, the data and the size of the check."""

    device: torch.device
    images: LabelledImages
    steps_per_round: int

    @property
    def capture(self) -> Capture:
        return as_cuda_graph if self.device.type == "cuda" else lambda compute: compute

    def data(self, device: torch.device | None = None) -> TrainingData:
        """Return all but the last NUM_VALIDATION images to train on, and those to validate with."""
        split = max(len(self.images) - NUM_VALIDATION, len(self.images) * 9 // 10)
        parts = (self.images.take(np.arange(split)), self.images.take(np.arange(split, len(self.images))))
        train, validation = (Examples.of(part, device or self.device) for part in parts)
        return TrainingData(train, validation, pixel_statistics(parts[0].images))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="holds MNIST's IDX files (default: made-up images)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal (default: cuda)")
    parser.add_argument("--images", type=int, default=60_000, help="use at most so many (default: 60000)")
    parser.add_argument("--steps", type=int, default=200, help="timed in each round (default: 200)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu_check: torch finds no CUDA device: run on a machine with a GPU, or pass --device cpu", file=sys.stderr
        )
        return 2
    images = read_mnist(arguments.data_dir) if arguments.data_dir else made_up(arguments.images)
    images = images.take(np.arange(min(arguments.images, len(images))))
    check = Check(torch.device(arguments.device), images, arguments.steps)
    name = torch.cuda.get_device_name() if check.device.type == "cuda" else "CPU"
    show("machine", device=name, torch=torch.__version__, cuda=torch.version.cuda, images=len(images))
    results = [
        check_capture_is_accepted(check),
        check_long_run(check),
        check_training(check, {}),
        check_training(check, ALL_PARTS),
        check_against_cpu(check),
    ]
    show_step_times(check)
    show("end", ok=all(results), seconds=round(time.perf_counter() - BEGAN, 1))
    return 0 if all(results) else 1


# --- the checks


def check_capture_is_accepted(check: Check) -> bool:
    """Compare ten steps as a training does, for each size of batch, in bfloat16, and with all parts of a training."""
    data, are_accepted = check.data(), []
    cases: list[tuple[int, Precision, dict[str, Any]]] = [(size, "float32", {}) for size in BATCH_SIZES]
    cases += [(128, "bfloat16", {}), (128, "float32", ALL_PARTS)]
    for batch_size, precision, parts in cases:
        steps = a_training(check, data, batch_size, precision, parts=parts)
        began = time.perf_counter()
        captured = captured_and_compared(steps, len(data.train), batch_size, check.device, check.capture)
        check.synchronize()
        seconds = time.perf_counter() - began
        batches = some_batches(len(data.train), batch_size, 10, check.device)
        eager = trajectory(steps, batches, eagerly(steps))
        noise = largest_difference(eager, trajectory(steps, batches, eagerly(steps)))
        steps.captured = captured
        difference = largest_difference(eager, trajectory(steps, batches, as_it_takes_them(steps)))
        are_accepted.append(bool(captured))
        show(
            "capture accepted",
            ok=bool(captured),
            batch_size=batch_size,
            precision=precision,
            parts=parts,
            difference=difference,
            eager_to_eager=noise,
            allowed=TOLERANCE,
            seconds=round(seconds, 3),
        )
    return all(are_accepted)


def check_long_run(check: Check) -> bool:
    """Take NUM_LONG steps both ways from one state; the losses must agree, the rest is reported."""
    data, batch_size = check.data(), 128
    steps = a_training(check, data, batch_size)
    captured = captured_and_compared(steps, len(data.train), batch_size, check.device, check.capture)
    batches = some_batches(len(data.train), batch_size, NUM_LONG, check.device)
    eager, again = (trajectory(steps, batches, eagerly(steps)) for _ in range(2))
    steps.captured = captured
    replayed = trajectory(steps, batches, as_it_takes_them(steps))

    def of_loss(other: Trajectory) -> float:
        return abs(float(other.losses.sum() / eager.losses.sum()) - 1)

    is_alike = bool(captured) and of_loss(replayed) <= TOLERANCE
    show(
        "200 steps",
        ok=is_alike,
        summed_loss_difference=of_loss(replayed),
        largest_difference=largest_difference(eager, replayed),
        eager_to_eager_loss=of_loss(again),
        eager_to_eager_largest=largest_difference(eager, again),
        allowed=TOLERANCE,
    )
    return is_alike


def check_training(check: Check, parts: dict[str, Any]) -> bool:
    """Train two epochs both ways by `fit`, from the same seed. parts: of the config."""
    data, config = check.data(), TrainingConfig(num_epochs=2, **parts)
    accuracies, modes, seconds = [], [], []
    for capture in (None, check.capture):
        state = TrainState.initial(config, data.statistics, Worker(device=check.device), kernels=PLAIN)
        with mock.patch.object(loop, "capture_for", lambda device, world_size, capture=capture: capture):
            *_, last = fit(state, data, config, Worker(device=check.device))
        assert last.validation is not None
        accuracies.append(last.validation.accuracy)
        modes.append(state.steps)
        seconds.append(round(last.elapsed_s, 3))
    is_alike = modes == ["eager", "captured"] and abs(accuracies[0] - accuracies[1]) <= ALLOWED_ACCURACY
    show(
        "training of 2 epochs",
        ok=is_alike,
        parts=parts,
        steps=modes,
        val_accuracy=accuracies,
        allowed=ALLOWED_ACCURACY,
        second_epoch_s=seconds,
    )
    return is_alike


def check_against_cpu(check: Check) -> bool:
    """Compare ten losses of the fast kernels on the CPU with those of plain torch on the GPU, dropout off."""
    config = TrainingConfig(num_epochs=1, dropout=0.0)
    losses = {}
    for device, allow_tf32 in ((torch.device("cpu"), False), (check.device, False), (check.device, True)):
        data, worker = check.data(device), Worker(device=device)
        state = TrainState.initial(config, data.statistics, worker)
        steps = Steps.of(state, data.train, config, worker)
        batches = some_batches(len(data.train), config.batch_size, 10, device)
        torch.backends.cudnn.allow_tf32 = allow_tf32  # on by default, which is how the last of the three leaves it
        losses[device.type, allow_tf32] = trajectory(steps, batches, eagerly(steps)).losses.cpu()
    expected = losses["cpu", False]
    exact, with_tf32 = (float((losses[check.device.type, allow] / expected - 1).abs().max()) for allow in (False, True))
    is_alike = exact <= ALLOWED_ACROSS_DEVICES
    show(
        "CPU auto, GPU plain: ten losses",
        ok=is_alike,
        difference=exact,
        with_tf32=with_tf32,
        allowed=ALLOWED_ACROSS_DEVICES,
    )
    return is_alike


def show_step_times(check: Check) -> None:
    """Print medians of NUM_ROUNDS rounds in turns: milliseconds of a step, and of an epoch by multiplication."""
    data = check.data()
    for batch_size in BATCH_SIZES:
        takers: dict[str, Steps] = {}
        for name, parts in (("captured", {}), ("captured, all parts", ALL_PARTS)):
            takers[name] = steps = a_training(check, data, batch_size, parts=parts)
            steps.captured = captured_and_compared(steps, len(data.train), batch_size, check.device, check.capture)
        takers["eager"] = a_training(check, data, batch_size)
        batches = some_batches(len(data.train), batch_size, check.steps_per_round, check.device)
        rounds: dict[str, list[float]] = {name: [] for name in takers}
        for number in range(NUM_ROUNDS + 1):
            for name, steps in takers.items():
                seconds = time_of(check, steps, batches)
                if number > 0:  # the first warms up
                    rounds[name].append(seconds / len(batches))
        medians = {name: statistics.median(each) for name, each in rounds.items()}
        show(
            "times",
            batch_size=batch_size,
            step_ms={name: round(1e3 * median, 4) for name, median in medians.items()},
            epoch_s={name: round(median * len(data.train) / batch_size, 3) for name, median in medians.items()},
            eager_to_captured=round(medians["eager"] / medians["captured"], 2),
        )


# --- the parts


def a_training(
    check: Check,
    data: TrainingData,
    batch_size: int,
    precision: Precision = "float32",
    kernels: Kernels = PLAIN,
    parts: Mapping[str, Any] = MappingProxyType({}),
) -> Steps:
    config = TrainingConfig(num_epochs=1, batch_size=batch_size, precision=precision, **parts)
    worker = Worker(device=check.device)
    state = TrainState.initial(config, data.statistics, worker, kernels=kernels)
    steps = Steps.of(state, data.train, config, worker)
    steps.begin_epoch()
    return steps


def some_batches(num_examples: int, batch_size: int, num_batches: int, device: torch.device) -> list[Tensor]:
    """Draw batches at random, every tenth of the size of an epoch's last one."""
    generator = torch.Generator().manual_seed(1)
    sizes = [batch_size] * num_batches
    sizes[4::10] = [num_examples % batch_size or batch_size] * len(sizes[4::10])
    return [torch.randint(num_examples, (size,), generator=generator).to(device) for size in sizes]


def eagerly(steps: Steps) -> Callable[[Tensor], None]:
    return lambda indices: steps.compute(indices, len(indices))


def as_it_takes_them(steps: Steps) -> Callable[[Tensor], None]:
    """Replay where a step was captured."""
    return lambda indices: (steps.captured.get(len(indices)) or eagerly(steps))(indices)


def time_of(check: Check, steps: Steps, batches: Sequence[Tensor]) -> float:
    check.synchronize()
    began = time.perf_counter()
    for batch in batches:
        steps.take(batch, len(batch))
    check.synchronize()
    return time.perf_counter() - began


def read_mnist(folder: Path) -> LabelledImages:
    """Read the 60,000 training images. Raises FileNotFoundError."""
    images, labels = (read_idx(folder, name) for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"))
    return LabelledImages(images.reshape(-1, 1, 28, 28), labels.astype(np.int64))


def read_idx(folder: Path, name: str) -> Any:
    found = sorted(folder.rglob(f"{name}*"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no file {name} or {name}.gz: pass the folder of MNIST's IDX files")
    path = next((each for each in found if "MNIST" in each.parts), found[0])  # KMNIST's files have the same names
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    num_dimensions = content[3]
    shape = np.frombuffer(content, ">i4", num_dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape).copy()


def made_up(num_images: int) -> LabelledImages:
    """Make images of ten noisy patterns, which a network can learn."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, num_images)
    patterns = generator.integers(0, 128, (10, 1, 28, 28))
    noise = generator.integers(0, 128, (num_images, 1, 28, 28))
    return LabelledImages((patterns[labels] + noise).astype(np.uint8), labels.astype(np.int64))


def show(check: str, **figures: object) -> None:
    print(json.dumps({"check": check, **figures}), flush=True)


BEGAN = time.perf_counter()

if __name__ == "__main__":
    sys.exit(main())
