"""What Ray, Optuna and the record cost around the training itself."""

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from mnist_ray import data
from mnist_ray.api import search_job
from mnist_ray.benchmarks.findings import Section
from mnist_ray.benchmarks.folders import short_folder
from mnist_ray.config import JobSpec, Retrain, TrainingConfig, parse_spec
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.execution import tensors_of
from mnist_ray.pipeline.tasks import RetrainingEnd, TrainingImages, TrainingTask
from mnist_ray.ray_backend.backend import HANG_LIMIT_S, RayBackend
from mnist_ray.ray_backend.cluster import connected
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.ray_backend.train.trainer import GroupSettings, retrain
from mnist_ray.record.timing import search_times
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.process import prepare_to_train

NUM_TRIALS = 20
NUM_IMAGES = 12_000  # an epoch takes some two seconds on one core
NUM_EPOCHS = 11
CONFIG = TrainingConfig(num_epochs=NUM_EPOCHS)


# --- the search


def measure_search(data_dir: Path, num_epochs: int = 1) -> Section:
    """A search of 20 trials on MNIST, each of so many epochs, none stopped early; on this machine's CPUs."""
    with short_folder() as folder:
        spec = _search_spec(folder, data_dir, num_epochs)
        run = search_job(spec, RayBackend("local", folder / "ray"), progress=False)
        assert run.state.started is not None
        num_slots = run.state.started.cluster.cpus
        times = search_times(run.state.trainings("search"), num_slots)
    row = {
        "trials": NUM_TRIALS,
        "at a time": num_slots,
        "training, s": round(times.training_s, 1),
        "wall, s": round(times.wall_s, 1),
        "cores training": f"{times.busy:.1%}",
        "first start-up, s": round(times.first_start_up_s, 2),
        "later start-ups, median s": round(times.start_up_s, 2),
        "worst, s": round(times.worst_start_up_s, 2),
    }
    return Section(
        "The search",
        f"A real search of {NUM_TRIALS} trials of {num_epochs} epoch(s) on MNIST, one thread each. Wall time is from "
        "the first trial's creation until a single one remains. A start-up is from a trial's creation to its first "
        "training step; those of the first trials include starting their processes and importing. Epochs are dated "
        "when the driver received them.",
        [row],
        {"share of the cores' time that trains while two or more trials remain": times.busy},
    )


def _search_spec(folder: Path, data_dir: Path, num_epochs: int) -> JobSpec:
    return parse_spec(
        {
            "name": "benchmark",
            "storage": str(folder / "results"),
            "data": {"name": "mnist", "dir": str(data_dir)},
            "search": {"num_trials": NUM_TRIALS, "num_epochs": num_epochs, "early_stopping": None},
        }
    )


# --- the retraining


@dataclass(frozen=True)
class Trained:
    """Seconds until the first epoch began, and from the first epoch's end to the last one's."""

    start_up_s: float
    epochs_s: float


def measure_retraining(data_dir: Path, num_rounds: int) -> Section:
    """The same epochs in a bare loop and under Ray Train, in turns, each on one worker of one thread."""
    bare, under_ray = [], []
    with short_folder() as folder, _bare_process(data_dir) as ask:
        began = time.perf_counter()
        with connected("local", folder / "ray", verbose=False):
            ray_s = time.perf_counter() - began
            shared = SharedImages.put(_images(data_dir))
            empty_s = _empty_group_s(shared, folder)
            for number in range(num_rounds):
                bare.append(ask())
                under_ray.append(_under_ray(shared, folder / str(number)))
    return _retraining_section(bare, under_ray, ray_s, empty_s)


def _images(data_dir: Path) -> TrainingImages:
    examples = data.load_training("mnist", data_dir).take(np.arange(NUM_IMAGES))
    return TrainingImages(examples, None, data.pixel_statistics(examples.images))


class _Reports:
    """What the driver receives of a retraining (RetrainingReports in pipeline/backend.py)."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, float]] = []  # when each was received, and how long it took

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
        self.epochs.append((time.perf_counter(), metrics.elapsed_s))

    def on_end(self, end: RetrainingEnd) -> None:
        pass

    def poll(self) -> None:
        pass


def _empty_group_s(shared: SharedImages, folder: Path) -> float:
    """Measure the seconds that a group takes which has nothing to do."""
    began = time.perf_counter()
    retrain([], 1, GroupSettings(shared, Retrain(), 0, folder / "empty", HANG_LIMIT_S), _Reports())
    return time.perf_counter() - began


def _under_ray(shared: SharedImages, folder: Path) -> Trained:
    reports = _Reports()
    began = time.perf_counter()
    sentinel = folder / "sentinel"
    folder.mkdir(parents=True)
    sentinel.touch()
    task = TrainingTask("retrain-benchmark", CONFIG, str(folder / "checkpoints"), 1, str(sentinel))
    retrain([task], 1, GroupSettings(shared, Retrain(), 0, folder / "ray-state", HANG_LIMIT_S), reports)
    (first, first_s), (last, _) = reports.epochs[0], reports.epochs[-1]
    return Trained(first - first_s - began, last - first)


@contextmanager
def _bare_process(data_dir: Path) -> Iterator["_Ask"]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs, data_dir)).start()
    theirs.close()
    ours.recv()  # it has imported everything
    try:
        yield _Ask(ours)
    finally:
        ours.send(None)


@dataclass(frozen=True)
class _Ask:
    """Let the bare loop train once."""

    connection: Connection

    def __call__(self) -> Trained:
        self.connection.send("train")
        trained: Trained = self.connection.recv()
        return trained


def _serve(connection: Connection, data_dir: Path) -> None:
    prepare_to_train(1)
    training_data = tensors_of(_images(data_dir), torch.device("cpu"))
    connection.send("ready")
    while connection.recv() is not None:
        began, ends = time.perf_counter(), []
        state = TrainState.initial(CONFIG, training_data.statistics)
        for report in fit(state, training_data, CONFIG):
            ends.append(time.perf_counter())
            if len(ends) == 1:
                start_up_s = ends[0] - report.elapsed_s - began
        connection.send(Trained(start_up_s, ends[-1] - ends[0]))


def _retraining_section(bare: list[Trained], under_ray: list[Trained], ray_s: float, empty_s: float) -> Section:
    seconds = {
        "bare loop": statistics.median(each.epochs_s for each in bare),
        "Ray Train": statistics.median(each.epochs_s for each in under_ray),
    }
    start_ups = {
        "bare loop": statistics.median(each.start_up_s for each in bare),
        "Ray Train": statistics.median(each.start_up_s for each in under_ray),
    }
    rows = [
        {"": name, "epochs, s": round(seconds[name], 2), "start-up, s": round(start_ups[name], 2)} for name in seconds
    ]
    pairs = [ours.epochs_s / plain.epochs_s for ours, plain in zip(under_ray, bare, strict=True)]
    return Section(
        "Retraining",
        f"{NUM_EPOCHS - 1} epochs over {NUM_IMAGES:,} images in batches of {CONFIG.batch_size}, one worker of one "
        f"thread, {len(bare)} times in turns (medians); under Ray Train with heartbeats, checkpoints and every epoch "
        f"reported to the driver. Starting Ray on this machine took {ray_s:.1f} s, a group that has nothing to do "
        f"{empty_s:.1f} s from its start to its end.",
        rows,
        {"time of the same epochs, Ray Train to the bare loop (median of pairs)": statistics.median(pairs)},
    )
