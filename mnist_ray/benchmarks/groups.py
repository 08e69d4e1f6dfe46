"""Retrainings side by side on one worker each, beside one after another on all workers: stages under Ray Train."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from mnist_ray import data
from mnist_ray.api import train_job
from mnist_ray.benchmarks.findings import Section
from mnist_ray.benchmarks.folders import short_folder
from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.pipeline.capacity import local_capacity
from mnist_ray.ray_backend.backend import RayBackend
from mnist_ray.record.events import RetrainingEnded

NUM_EPOCHS = 4
EXCHANGE_EFFICIENCY = (
    0.80  # of two workers of one training to twice one worker, at a batch of 128 (docs/performance.md)
)
TOLERANCE = 1.05


@dataclass(frozen=True)
class Stage:
    """A retraining stage. Seconds: of the whole stage, of the median epoch."""

    wall_s: float
    epoch_s: float


def measure_groups(data_dir: Path, num_rounds: int, num_epochs: int = NUM_EPOCHS, data_set: str = "mnist") -> Section:
    """Retrain as many seeds as there are CPUs in three ways, in turns. Raises DataError, SpecError."""
    data.fetch(data_set, data_dir)
    num = local_capacity().cpus
    ways = {
        f"{num} side by side, 1 worker each": {"workers": 1, "concurrent": num},
        f"one after another, {num} workers": {"workers": num, "concurrent": 1},
        "one after another, 1 worker": {"workers": 1, "concurrent": 1},
    }
    found: dict[str, list[Stage]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, ways_settings in ways.items():
            found[name].append(_stage(data_dir, data_set, num_epochs, num, ways_settings))
    return _section(found, num, num_epochs, num_rounds)


def _section(found: dict[str, list[Stage]], num: int, num_epochs: int, num_rounds: int) -> Section:
    walls = {name: statistics.median(stage.wall_s for stage in stages) for name, stages in found.items()}
    epochs = {name: statistics.median(stage.epoch_s for stage in stages) for name, stages in found.items()}
    side_by_side, together, alone = found
    efficiency = epochs[alone] / epochs[side_by_side]
    rows = [
        {"": name, "stage, s": round(walls[name], 1), "an epoch of one training, s": round(epochs[name], 2)}
        for name in found
    ]
    ratios = {
        f"throughput of {num} independent trainings to {num} times that of one": efficiency,
        f"time of the stage, side by side to one after another on {num} workers": walls[side_by_side] / walls[together],
    }
    if num == 2:
        ratios["the most that was asked for of that"] = TOLERANCE * EXCHANGE_EFFICIENCY / efficiency
    return Section(
        "Retrainings side by side",
        f"{num} trainings of {num_epochs} epochs with the parts of jobs/mnist.yaml, as a stage of a job, the start of "
        f"its groups included; {num_rounds} rounds in turns, medians.",
        rows,
        ratios,
    )


def _stage(data_dir: Path, data_set: str, num_epochs: int, num_seeds: int, settings: dict[str, int]) -> Stage:
    with short_folder() as folder:
        run = train_job(
            _spec(folder, data_dir, data_set, num_epochs, num_seeds, settings),
            RayBackend("local", folder / "r"),
            progress=False,
        )
        ended = [event for event in run.state.stage_events if isinstance(event, RetrainingEnded)]
        epochs = [metrics.elapsed_s for training in run.state.trainings("retrain") for metrics in training.history[1:]]
        return Stage(ended[0].elapsed_s, statistics.median(epochs))


def _spec(
    folder: Path, data_dir: Path, data_set: str, num_epochs: int, num_seeds: int, settings: dict[str, int]
) -> JobSpec:
    return parse_spec(
        {
            "name": "benchmark",
            "storage": str(folder / "results"),
            "data": {"name": data_set, "dir": str(data_dir)},
            "training": {"schedule": "cosine", "ema": 0.1},
            "retrain": {"num_epochs": num_epochs, "seeds": list(range(num_seeds)), "baseline": False, **settings},
        }
    )
