"""A training step, beside the loop that is usually written.

All train the same network with the same optimizer on MNIST in batches of 128, each in its own process, in turns:

- the usual loop: that of PyTorch's MNIST example (torchvision's data set and transforms, a DataLoader, the network from
  torch's own layers), with the numbers of loader processes and threads at which it is fastest;
- the same with the images held in memory and indexed by batch;
- the step of mnist_ray, its metrics included, with convolutions in float32 and in bfloat16.
"""

import atexit
import gzip
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from joblib import cpu_count
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from mnist_ray import data
from mnist_ray.benchmarks.findings import Section
from mnist_ray.config import Precision, TrainingConfig
from mnist_ray.training.cuda_graph import capture_for, captured_and_compared
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples
from mnist_ray.training.loop import Steps, TrainState
from mnist_ray.training.process import prepare_to_train

BATCH_SIZE = 128
WARM_UP_STEPS = 8  # in each round: batches that loader processes have prepared meanwhile are used up
STEPS_PER_ROUND = 30
USUAL, IN_MEMORY, OURS, OURS_ON_GPU = "usual loop", "images in memory", "mnist_ray", "mnist_ray on the GPU"
OURS_IN_BFLOAT16 = "mnist_ray, bfloat16"

Step = Callable[[], None]


@dataclass(frozen=True)
class Measured:
    """Seconds of one step, the mean over a round."""

    wall_s: float
    cpu_s: float


class Contestant:
    """A loop in a process of its own, since memory settings and threads are a process's."""

    def __init__(self, kind: str, num_threads: int, folder: Path, num_loaders: int = 0) -> None:
        self.kind = kind
        self.is_usual = kind == USUAL
        self.name = kind + (f", {num_loaders} loader processes" if self.is_usual else "")
        self.num_threads = num_threads
        self._rounds: list[Measured] = []
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, kind, num_threads, folder, num_loaders)).start()
        theirs.close()

    def run(self) -> None:
        self._connection.send("round")
        self._rounds.append(self._connection.recv())

    def end(self) -> None:
        self._connection.send(None)

    @property
    def wall_s(self) -> float:
        return statistics.median(each.wall_s for each in self._rounds)

    @property
    def cpu_s(self) -> float:
        return statistics.median(each.cpu_s for each in self._rounds)


def measure_steps(data_dir: Path, num_rounds: int) -> Section:
    """data_dir: has MNIST. Takes about 25 s a round on two cores."""
    contestants = [
        contestant
        for num_threads in sorted({1, cpu_count()})
        for contestant in (
            *(Contestant(USUAL, num_threads, data_dir, num_loaders) for num_loaders in (0, 1, 2)),
            Contestant(IN_MEMORY, num_threads, data_dir),
            Contestant(OURS, num_threads, data_dir),
            Contestant(OURS_IN_BFLOAT16, num_threads, data_dir),
        )
    ]
    if torch.cuda.is_available():
        contestants.append(Contestant(OURS_ON_GPU, 1, data_dir))
    for _ in range(num_rounds):
        for contestant in contestants:
            contestant.run()
    for contestant in contestants:
        contestant.end()
    return _section(contestants, num_rounds)


def _section(contestants: Sequence[Contestant], num_rounds: int) -> Section:
    usual = min((each for each in contestants if each.is_usual), key=lambda each: each.wall_s)
    rows = [
        {
            "loop": each.name,
            "threads": each.num_threads,
            "wall ms": round(1e3 * each.wall_s, 1),
            "CPU ms": round(1e3 * each.cpu_s, 1),
            "throughput": round(usual.wall_s / each.wall_s, 2),
        }
        for each in contestants
    ]
    ours = min((each for each in contestants if each.kind == OURS), key=lambda each: each.wall_s)
    alone = {each.name: each.cpu_s for each in contestants if each.num_threads == 1}
    return Section(
        "A step of 128 images",
        f"Medians of {num_rounds} rounds in turns, {STEPS_PER_ROUND} steps each. Throughput is that of the usual loop "
        "at its fastest, times so much; CPU time is the training process's own, without its loaders'.",
        rows,
        {
            "throughput, mnist_ray at its fastest to the usual loop at its fastest": usual.wall_s / ours.wall_s,
            "CPU time of a step in one process and one thread, usual loop to mnist_ray": (
                alone[f"{USUAL}, 0 loader processes"] / alone[OURS]
            ),
            "CPU time of a step in one thread, mnist_ray in float32 to bfloat16": alone[OURS] / alone[OURS_IN_BFLOAT16],
        },
    )


# --- in the process of a contestant


def _serve(connection: Connection, kind: str, num_threads: int, folder: Path, num_loaders: int) -> None:
    """A round for each message, until None."""
    torch.set_num_threads(num_threads)
    examples = data.load_training("mnist", folder)
    pixels = data.pixel_statistics(examples.images)
    if kind == USUAL:
        step = usual_step(folder, num_loaders, pixels)
    elif kind == IN_MEMORY:
        step = in_memory_step(Examples.of(examples, torch.device("cpu")), pixels)
    else:
        prepare_to_train(num_threads)
        device = torch.device("cuda" if kind == OURS_ON_GPU else "cpu")
        step = our_step(examples, pixels, device, "bfloat16" if kind == OURS_IN_BFLOAT16 else "float32")
    while connection.recv() is not None:
        for _ in range(WARM_UP_STEPS):
            step()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(STEPS_PER_ROUND):
            step()
        if kind == OURS_ON_GPU:
            torch.cuda.synchronize()
        connection.send(
            Measured((time.perf_counter() - wall) / STEPS_PER_ROUND, (time.process_time() - cpu) / STEPS_PER_ROUND)
        )


def usual_step(folder: Path, num_loaders: int, pixels: data.PixelStatistics) -> Step:
    unpacked = tempfile.mkdtemp(prefix="mnist-")  # which torchvision asks for
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    raw = Path(unpacked, "MNIST", "raw")
    raw.mkdir(parents=True)
    for packed in (folder / "MNIST" / "raw").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((pixels.mean,), (pixels.std,))])
    loader = DataLoader(
        datasets.MNIST(unpacked, train=True, transform=transform),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=num_loaders,
        persistent_workers=num_loaders > 0,
    )
    batches = _endless(loader)
    train = _torchs_step()
    return lambda: train(*next(batches))


def _endless(loader: "DataLoader[tuple[Tensor, Tensor]]") -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def in_memory_step(examples: Examples, pixels: data.PixelStatistics) -> Step:
    train = _torchs_step()

    def step() -> None:
        indices = torch.randint(len(examples), (BATCH_SIZE,))
        train((examples.images[indices].float() / 255 - pixels.mean) / pixels.std, examples.labels[indices])

    return step


def _torchs_step() -> Callable[[Tensor, Tensor], None]:
    """What one writes with torch's own parts and nothing else; images: (B, 1, 28, 28) float32."""

    def block(channels_in: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]

    model = nn.Sequential(*block(1), *block(32), nn.Flatten(), nn.Linear(800, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()
    model.train()

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def our_step(
    images: data.LabelledImages, pixels: data.PixelStatistics, device: torch.device, precision: Precision
) -> Step:
    """The step of trials and retraining, its metrics included."""
    worker, examples = Worker(device=device), Examples.of(images, device)
    state = TrainState.initial(TrainingConfig(num_epochs=1, precision=precision), pixels, worker)
    steps = Steps(state.model, state.optimizer, examples, worker)
    capture = capture_for(device, 1)
    if capture is not None:
        steps.captured = captured_and_compared(steps, len(examples), BATCH_SIZE, device, capture)
    steps.begin_epoch()
    return lambda: steps.take(torch.randint(len(examples), (BATCH_SIZE,), device=device), BATCH_SIZE)
