"""Is the reusable training step slower than a loop written by hand? `make bench`

Both train the same network with the same optimizer on the same batches of 128 images held in memory, on one
thread, in turns. The figures are medians over rounds; the ratio is what counts, the times are this machine's.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mnist_ray.config import TrainingConfig
from mnist_ray.learning.data import LabelledImages, PixelStatistics
from mnist_ray.learning.metrics import ScoreSums
from mnist_ray.learning.training import Examples, TrainState, Worker, train_step

BATCH_SIZE = 128
NUM_EXAMPLES = 20_000
STEPS_PER_ROUND = 10
NUM_ROUNDS = 15


def main() -> None:
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (NUM_EXAMPLES, 1, 28, 28), dtype=np.uint8)
    examples = Examples.of(LabelledImages(images, generator.integers(0, 10, NUM_EXAMPLES)), torch.device("cpu"))
    contestants = {"hand-written loop": hand_written_step(examples), "mnist_ray step": reusable_step(examples)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for round_number in range(NUM_ROUNDS + 1):
        for name, step in contestants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(STEPS_PER_ROUND):
                step(torch.randint(NUM_EXAMPLES, (BATCH_SIZE,)))
            if round_number:  # the first round warms up
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    report(seconds)


def hand_written_step(examples: Examples) -> Callable[[Tensor], None]:
    """What one writes with torch's own parts and nothing else."""

    def block(channels_in: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]

    model = nn.Sequential(*block(1), *block(32), nn.Flatten(), nn.Linear(800, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()
    model.train()

    def step(indices: Tensor) -> None:
        inputs = (examples.images[indices].float() / 255 - 0.1307) / 0.3081
        optimizer.zero_grad()
        loss = criterion(model(inputs), examples.labels[indices])
        loss.backward()
        optimizer.step()

    return step


def reusable_step(examples: Examples) -> Callable[[Tensor], None]:
    """The step of trials and retraining, its metrics included."""
    worker = Worker()
    state = TrainState.initial(TrainingConfig(num_epochs=1), PixelStatistics(0.1307, 0.3081), worker)
    network = state.model
    sums = ScoreSums(worker.device)
    network.train()

    def step(indices: Tensor) -> None:
        images, labels = examples.images[indices], examples.labels[indices]
        train_step(network, state.optimizer, images, labels, BATCH_SIZE, worker, sums)

    return step


def report(seconds: dict[str, list[tuple[float, float]]]) -> None:
    print(f"median of {NUM_ROUNDS} interleaved rounds of {STEPS_PER_ROUND} steps, one thread")
    medians = {
        name: [1e3 * statistics.median(column) / STEPS_PER_ROUND for column in zip(*rounds, strict=True)]
        for name, rounds in seconds.items()
    }
    for name, (cpu, wall) in medians.items():
        print(f"  {name:<18} {cpu:6.1f} ms of CPU, {wall:6.1f} ms wall per step of {BATCH_SIZE} images")
    first, second = medians.values()
    print(f"  ratio of CPU time, ours to hand-written: {second[0] / first[0]:.2f}")


if __name__ == "__main__":
    main()
