"""A search and a training of mnist_ray, beside those that Ray's documentation shows (ray_backend/documented/).

All train the same network on the same images, in the same numbers of trials, epochs, images and steps. Each program
runs in a process of its own, with a Ray of its own, in turns. This module imports neither torch nor Ray: the processes
import it, and their time to import is measured.
"""

import math
import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from mnist_ray import data
from mnist_ray.api import search_job
from mnist_ray.benchmarks.findings import Section
from mnist_ray.benchmarks.folders import short_folder
from mnist_ray.config import DataSetName, Retrain, TrainingConfig, parse_spec
from mnist_ray.errors import SpecError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.capacity import local_capacity
from mnist_ray.pipeline.tasks import RetrainingEnd, TrainingImages, TrainingTask
from mnist_ray.ray_backend.backend import HANG_LIMIT_S, RayBackend
from mnist_ray.ray_backend.cluster import connected, make_token
from mnist_ray.ray_backend.compat import ENVIRONMENT, LOCAL_ENVIRONMENT, PROCESS_LIMITS
from mnist_ray.ray_backend.documented.figures import Epoch, Figures

NUM_WORKERS = 2
DOCUMENTED, OURS = "as documented", "mnist_ray"

P = ParamSpec("P")


@dataclass(frozen=True)
class Sizes:
    """The work of each program."""

    data_set: DataSetName = "mnist"
    num_images: int = 12_000  # trained on
    num_validation: int = 1_000  # each trial's, after each epoch
    num_trials: int = 8
    epochs_of_trial: int = 1
    epochs_of_training: int = 3
    batch_size: int = 128  # the global one


SIZES = Sizes()


@dataclass(frozen=True)
class Ran:
    """A program that has run. whole_s: from the start of its process to its result."""

    whole_s: float
    figures: Figures

    @property
    def epoch_s(self) -> float:
        return statistics.median(epoch.elapsed_s for epoch in self.figures.epochs)


@dataclass(frozen=True)
class Turn:
    """Both programs, one after the other."""

    documented: Ran
    ours: Ran


@dataclass(frozen=True)
class Turns:
    """All rounds."""

    searches: list[Turn]
    trainings: list[Turn]


def measure_peers(data_dir: Path, num_rounds: int, sizes: Sizes = SIZES) -> list[Section]:
    """Measure the searches, then the trainings. data_dir: has the data set. Raises SpecError on a single CPU."""
    turns = take_turns(data_dir, num_rounds, sizes)
    return [search_section(turns.searches, sizes), training_section(turns.trainings, sizes)]


def take_turns(data_dir: Path, num_rounds: int, sizes: Sizes) -> Turns:
    """Run all programs, each so often. Raises as `measure_peers`, and what a program raises."""
    num_cpus = local_capacity().cpus
    if num_cpus < NUM_WORKERS:
        raise SpecError(f"PART peers trains with {NUM_WORKERS} workers, and this machine has one CPU: leave it out")
    make_token()
    with short_folder() as folder:
        written = folder / "data"
        write_for_torchvision(written, sizes, data_dir)
        return Turns(
            [_search_turn(written, data_dir, num_cpus, sizes) for _ in range(num_rounds)],
            [_training_turn(written, data_dir, num_cpus, sizes) for _ in range(num_rounds)],
        )


def _search_turn(written: Path, data_dir: Path, num_cpus: int, sizes: Sizes) -> Turn:
    from mnist_ray.ray_backend.documented.search import search

    with short_folder() as folder:
        work = (sizes.num_trials, sizes.epochs_of_trial, sizes.batch_size)
        documented = _ran(search, written, folder, *work, num_cpus)
    with short_folder() as folder:
        return Turn(documented, _ran(our_search, data_dir, folder, sizes))


def _training_turn(written: Path, data_dir: Path, num_cpus: int, sizes: Sizes) -> Turn:
    from mnist_ray.ray_backend.documented.training import train

    with short_folder() as folder:
        documented = _ran(train, written, folder, NUM_WORKERS, sizes.epochs_of_training, sizes.batch_size, num_cpus)
    with short_folder() as folder:
        return Turn(documented, _ran(our_training, data_dir, folder, sizes))


def _ran(program: Callable[P, Figures], *arguments: P.args, **options: P.kwargs) -> Ran:
    """Run a program in a new process, whose output is dropped. Raises what the program raises."""
    context = multiprocessing.get_context("spawn")
    with _ray_as_installed(), ProcessPoolExecutor(1, context, initializer=_drop_output) as processes:
        began = time.perf_counter()
        figures = processes.submit(program, *arguments, **options).result()
        return Ran(time.perf_counter() - began, figures)


@contextmanager
def _ray_as_installed() -> Iterator[None]:
    """Take mnist_ray's settings of Ray out of the environment for a block: other parts may have left them there.

    Ray's reports of its use to its makers stay off.
    """
    with patch.dict(os.environ):
        for name in (*ENVIRONMENT, *LOCAL_ENVIRONMENT, *PROCESS_LIMITS, "OMP_WAIT_POLICY"):
            os.environ.pop(name, None)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        yield


def _drop_output() -> None:
    """Send what this process and its children print to nowhere: Ray prints tables."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


# --- the images


def taken(data_set: str, data_dir: Path, sizes: Sizes) -> data.LabelledImages:
    """Return the first images of the training half: those to train on and those to validate on."""
    return data.load_training(data_set, data_dir).take(np.arange(sizes.num_images + sizes.num_validation))


def write_for_torchvision(folder: Path, sizes: Sizes, data_dir: Path) -> None:
    """Write the images as MNIST's files, unpacked: those to validate on take the place of the test half."""
    examples = taken(sizes.data_set, data_dir, sizes)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    halves = {"train": np.arange(sizes.num_images), "t10k": np.arange(sizes.num_images, len(examples))}
    for name, indices in halves.items():
        half = examples.take(indices)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(_idx(half.images[:, 0]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(_idx(half.labels.astype(np.uint8)))


def _idx(array: npt.NDArray[np.uint8]) -> bytes:
    """Return an array in the IDX format: two zeros, the type (8: uint8), the number of axes, their lengths, values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


# --- mnist_ray's programs


def our_search(data_dir: Path, folder: Path, sizes: Sizes) -> Figures:
    """Search with `search_job` over the learning rate alone, without a final round."""
    spec = parse_spec(
        {
            "name": "benchmark",
            "storage": str(folder / "results"),
            "data": {"name": sizes.data_set, "dir": str(data_dir), "num_validation": sizes.num_validation},
            "recipe": {"batch_size": sizes.batch_size},
            "search": {
                "num_trials": sizes.num_trials,
                "num_epochs": sizes.epochs_of_trial,
                "space": {"learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}},
                "early_stopping": None,
            },
            "final": None,
        }
    )
    few = taken(sizes.data_set, data_dir, sizes)
    with patch.object(data.opened, "load_training", lambda name, folder: few):  # no key of a spec says to take fewer
        state = search_job(spec, RayBackend("local", folder / "ray"), progress=False).state
    assert state.search_ended is not None
    histories = [trial.history for trial in state.trainings("search")]
    epochs = [_epoch(metrics, sizes.batch_size) for history in histories for metrics in history]
    return Figures(state.search_ended.elapsed_s, epochs)


def our_training(data_dir: Path, folder: Path, sizes: Sizes) -> Figures:
    """Retrain once on a group of workers, as the retraining stage does."""
    from mnist_ray.ray_backend.shared_data import SharedImages
    from mnist_ray.ray_backend.train.trainer import GroupSettings, retrain

    examples = taken(sizes.data_set, data_dir, sizes).take(np.arange(sizes.num_images))
    images = TrainingImages(examples, None, data.pixel_statistics(examples.images))
    config = TrainingConfig(num_epochs=sizes.epochs_of_training, batch_size=sizes.batch_size)
    sentinel = folder / "sentinel"
    sentinel.touch()
    task = TrainingTask("retrain-benchmark", config, str(folder / "checkpoints"), 1, str(sentinel))
    reports = _Reports()
    with connected("local", folder / "ray", verbose=False):
        began = time.perf_counter()
        shared = SharedImages.put(images)
        retrain([task], 1, GroupSettings(shared, Retrain(workers=NUM_WORKERS), 0, folder, HANG_LIMIT_S), reports)
        work_s = time.perf_counter() - began
    return Figures(work_s, [_epoch(metrics, sizes.batch_size) for metrics in reports.epochs])


class _Reports:
    """What the driver receives of a retraining (RetrainingReports in pipeline/backend.py)."""

    def __init__(self) -> None:
        self.epochs: list[EpochMetrics] = []

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
        self.epochs.append(metrics)

    def on_end(self, end: RetrainingEnd) -> None:
        assert end.failure is None, end.failure

    def poll(self) -> None:
        pass


def _epoch(metrics: EpochMetrics, batch_size: int) -> Epoch:
    num_images = metrics.train.num_examples
    return Epoch(metrics.elapsed_s, math.ceil(num_images / batch_size), num_images)


# --- what comes out


def search_section(turns: Sequence[Turn], sizes: Sizes) -> Section:
    """Make the section of the searches."""
    return Section(
        "A search beside Ray's documentation",
        f"A search of {sizes.num_trials} trials of {sizes.epochs_of_trial} epoch(s) over {sizes.num_images:,} images "
        f"in batches of {sizes.batch_size}, scored on {sizes.num_validation:,} more after each epoch; one CPU and one "
        "thread a trial. As documented: `tune.Tuner` over a function, `OptunaSearch`, torchvision's data set with its "
        "transforms in a `DataLoader`, the same network from torch's layers, torch's Adam, Ray's defaults. mnist_ray: "
        "`search_job`, with its record, checkpoints and heartbeats. Only the learning rate is searched. "
        f"{_how_measured(len(turns), 'search')} mnist_ray starts processes before its search begins, which counts to "
        "the whole program alone. An epoch includes its validation.",
        _rows(turns, "search"),
        _ratios(turns, "search"),
    )


def training_section(turns: Sequence[Turn], sizes: Sizes) -> Section:
    """Make the section of the trainings."""
    return Section(
        "A training on two workers beside Ray's documentation",
        f"A training of {sizes.epochs_of_training} epoch(s) over {sizes.num_images:,} images in global batches of "
        f"{sizes.batch_size} on {NUM_WORKERS} workers of one CPU and one thread each, with gloo, without validation. "
        "As documented: `TorchTrainer`, `prepare_model` (DDP), `prepare_data_loader`, a report with a checkpoint after "
        "each epoch, network and data as in the search, Ray's defaults; batch normalisation over each worker's share. "
        "mnist_ray: a group of its retraining, with heartbeats and checkpoints; batch normalisation over the global "
        f"batch. {_how_measured(len(turns), 'training')}",
        _rows(turns, "training"),
        _ratios(turns, "training"),
    )


def _how_measured(num_rounds: int, what: str) -> str:
    return (
        f"Medians of {num_rounds} round(s) in turns, each program in a new process. The whole program: from the "
        f"process's start, with its imports and the start and end of its own Ray. The {what}: with Ray there, the "
        "start of the processes that train included."
    )


def _rows(turns: Sequence[Turn], what: str) -> list[dict[str, object]]:
    programs = {DOCUMENTED: [turn.documented for turn in turns], OURS: [turn.ours for turn in turns]}
    return [
        {
            "": name,
            "whole program, s": round(statistics.median(each.whole_s for each in ran), 2),
            f"{what}, s": round(statistics.median(each.figures.work_s for each in ran), 2),
            "an epoch, s": round(statistics.median(each.epoch_s for each in ran), 2),
            "steps": ran[0].figures.num_steps,
            "images": f"{ran[0].figures.num_images:,}",
        }
        for name, ran in programs.items()
    ]


def _ratios(turns: Sequence[Turn], what: str) -> dict[str, float]:
    measures: dict[str, Callable[[Ran], float]] = {
        "the whole program": lambda ran: ran.whole_s,
        f"the {what}": lambda ran: ran.figures.work_s,
        "an epoch": lambda ran: ran.epoch_s,
    }
    return {
        f"time of {name}, {DOCUMENTED} to mnist_ray (median of pairs)": statistics.median(
            measure(turn.documented) / measure(turn.ours) for turn in turns
        )
        for name, measure in measures.items()
    }
