"""The needs of a job before anything starts: CPUs, batches, upload, disk, time, cost, and problems to solve first."""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mnist_ray import data
from mnist_ray.config import JobSpec, Retrain
from mnist_ray.errors import DataError, SpecError
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.pipeline.early_stopping import rungs
from mnist_ray.record.disk_use import bytes_needed
from mnist_ray.record.rundir import RunDir, readable_runs
from mnist_ray.record.timing import start_up_s
from mnist_ray.shown import duration
from mnist_ray.statistics import FEWEST_SEEDS, Spread, expected_half_width
from mnist_ray.storage.disk_space import check_space
from mnist_ray.storage.files import StoragePath, read, storage_path

START_UP_S = 17.0  # of Ray and of the processes of each stage, on two cores (docs/performance.md)
END_S = 4.0  # of tables, report and Ray's end (docs/performance.md)


@dataclass(frozen=True)
class Speed:
    """The time that one image takes in training, on one worker."""

    image_s: float
    source: str  # of the figure, for people
    start_up_s: float | None = None  # of all stages and the end, where an earlier run has shown it
    is_rough: bool = False


@dataclass(frozen=True)
class Estimate:
    """Seconds of wall time: as early stopping is expected to go, and without any."""

    stage: str
    expected_s: float
    at_most_s: float


class Cost(NamedTuple):
    """Money in the currency of the price: as early stopping is expected to go, and without any."""

    expected: float
    at_most: float


@dataclass(frozen=True)
class Plan:
    """Everything that `mnist-ray plan` prints."""

    facts: list[tuple[str, str]]
    speed: Speed | None
    estimates: list[Estimate]  # empty where no speed is known
    obstacles: list[str]

    @property
    def total(self) -> Estimate | None:
        if not self.estimates:
            return None
        return Estimate(
            "total", sum(each.expected_s for each in self.estimates), sum(each.at_most_s for each in self.estimates)
        )

    def cost(self, price_per_hour: float | None) -> Cost | None:
        """Return what a cluster of this price costs for the job; None without a price or an estimate."""
        total = self.total
        if total is None or price_per_hour is None:
            return None
        return Cost(price_per_hour * total.expected_s / 3600, price_per_hour * total.at_most_s / 3600)

    def lines(self, price_per_hour: float | None = None) -> list[str]:
        """price_per_hour: of the whole cluster, in any currency."""
        lines = [f"{name:<22} {text}" for name, text in self.facts]
        about = "roughly " if self.speed and self.speed.is_rough else ""
        lines += [_estimate_line(each, about) for each in (*self.estimates, self.total) if each is not None]
        if cost := self.cost(price_per_hour):
            text = f"{about}{cost.expected:.2f} to {cost.at_most:.2f}, at {price_per_hour:g} an hour"
            lines.append(f"{'cost':<22} {text} for the whole cluster")
        return [*lines, *(f"{'PROBLEM':<22} {obstacle}" for obstacle in self.obstacles)]


def _estimate_line(estimate: Estimate, about: str) -> str:
    expected, most = (duration(seconds) for seconds in (estimate.expected_s, estimate.at_most_s))
    text = expected if expected == most else f"{expected}, at most {most}"
    return f"{'time, ' + estimate.stage:<22} {about}{text}"


def plan(spec: JobSpec, capacity: Capacity, upload_bytes: int | None = None) -> Plan:
    """Plan a job; nothing is started or downloaded.

    upload_bytes: the size of what `mnist-ray submit` would send; None where nothing is sent. Raises DataError for a
    validation split that the data cannot give.
    """
    _sizes_in.cache_clear()
    sizes = _sizes(spec)
    data.check_num_validation(sizes.num_held_out(spec.data.num_validation), sizes.num_training, sizes.num_classes)
    obstacles = list(_obstacles(spec, capacity))
    speed = known_speed(spec, storage_path(spec.storage))
    if speed is None and not obstacles:
        speed = measured_speed(spec)
    facts = list(_facts(spec, capacity, upload_bytes))
    if speed or not obstacles:
        facts.append(("speed", speed.source if speed else "unknown: trials use GPUs, and this machine has none"))
    estimates = _estimates(spec, capacity, speed) if speed and not obstacles else []
    return Plan(facts, speed, estimates, obstacles)


def _obstacles(spec: JobSpec, capacity: Capacity) -> Iterator[str]:
    for check in (capacity.num_concurrent_trials, capacity.check_retraining):
        try:
            check(spec)
        except SpecError as error:
            yield str(error)
    try:
        data.presence(spec.data.name, data.data_dir_of(spec.data.dir), spec.data.transpose, spec.data.test_fraction)
    except DataError as error:
        yield str(error)
    try:
        check_space(storage_path(spec.storage).absolute(), bytes_needed(spec))
    except OSError as error:
        yield f"{error.filename}: {error.strerror}"


def _facts(spec: JobSpec, capacity: Capacity, upload_bytes: int | None) -> Iterator[tuple[str, str]]:
    search, retrain = spec.search, spec.retrain
    yield "cluster", _devices(capacity.cpus, capacity.gpus)
    try:
        at_once = str(min(capacity.num_concurrent_trials(spec), search.num_trials))
    except SpecError:
        at_once = "0"
    yield (
        "trials",
        f"{search.num_trials}, {at_once} at a time, each on {_devices(search.cpus_per_trial, search.gpus_per_trial)}",
    )
    parts = "the recipe as published" if len(spec.fixed_trials) == 1 else "the recipe as published, and with `training`"
    yield "fixed trials", f"{min(len(spec.fixed_trials), search.num_trials)} of these trials: {parts}"
    yield "early stopping", _early_stopping(spec)
    if spec.final:
        yield "final round", f"up to {spec.most_final_trainings} trainings, those of the recipe included"
    else:
        yield "final round", "none, since final is null"
    if retrain is None:
        yield "retraining", "none, since retrain is null: the models of the final round are tested"
    else:
        yield (
            "retraining",
            f"{retrain.num_trainings} trainings, {capacity.num_concurrent_retrainings(retrain, retrain.num_trainings)} "
            f"at a time, each on {retrain.workers_in_words} {'worker' if retrain.most_workers == 1 else 'workers'} of "
            f"{_devices(retrain.cpus_per_worker, retrain.gpus_per_worker)}{_faster(retrain, capacity)}",
        )
    for stage, num_epochs, batches in _work(spec):
        steps = sorted({num_epochs * math.ceil(_num_train(spec, stage) / batch) for batch in batches})
        yield f"work, {stage}", f"up to {num_epochs:,} epochs, {' to '.join(f'{each:,}' for each in steps)} steps"
    if retrain is not None:
        yield "images per worker", f"of each batch: {', '.join(_shares(spec, retrain))}"
    if warning := spec.oversized_batch(_num_train(spec, "search")):
        yield "warning", warning
    folder = data.data_dir_of(spec.data.dir)
    try:
        found = data.presence(spec.data.name, folder, spec.data.transpose, spec.data.test_fraction)
    except DataError:
        found = "damaged, see below"  # an obstacle
    yield "data", f"{spec.data.name} in {folder}: {found}"
    yield "disk", f"up to {bytes_needed(spec) / 1e6:.0f} MB in {storage_path(spec.storage).absolute()}"
    yield "verdict", _verdict_fact(spec)
    if upload_bytes is not None:
        yield "upload", f"{upload_bytes / 1e6:.1f} MB; Ray accepts up to 100 MiB"


def _shares(spec: JobSpec, retrain: Retrain) -> Iterator[str]:
    """Yield a text for each batch size: how many images of a batch a worker gets."""
    for size in _batch_sizes(spec):
        ends = sorted({size / retrain.most_workers, size / retrain.fewest_workers})
        yield f"{' to '.join(f'{share:g}' for share in ends)} of {size}"


def _devices(cpus: float, gpus: float) -> str:
    """Return "1 CPU", "2 CPUs and 1 GPU" or the like."""
    counts = [f"{cpus:g} CPU{'s' if cpus != 1 else ''}"]
    if gpus:
        counts.append(f"{gpus:g} GPU{'s' if gpus != 1 else ''}")
    return " and ".join(counts)


# Of this network on MNIST, rounded: docs/statistics.md says where they come from.
SPREAD_OF_LOSS = Spread(seeds=0.0015, images=0.14)
SPREAD_OF_ACCURACY = Spread(seeds=0.0005, images=0.04)


def _verdict_fact(spec: JobSpec) -> str:
    """Say what decides, how wide an interval to expect, and whether "equivalent" can come out."""
    by = f"by {spec.decided_by.replace('_', ' ')}"
    num_seeds, num_images = spec.num_tested_seeds, _sizes(spec).num_test
    if not spec.tests_baseline:
        return "none, since retrain.baseline is false"
    if num_seeds < FEWEST_SEEDS:
        key = "retrain.seeds" if spec.retrain else "final.seeds"
        return (
            f"{by}, about the tested networks only and never 'equivalent', because {key} gives fewer than "
            f"{FEWEST_SEEDS} seeds"
        )
    loss = expected_half_width(SPREAD_OF_LOSS, num_seeds, num_images)
    points = 100 * expected_half_width(SPREAD_OF_ACCURACY, num_seeds, num_images, step=1.0)
    assumed = "" if spec.data.name == "mnist" else ", if they spread as on MNIST"
    fact = (
        f"{by}; with {num_seeds} seeds each and {num_images:,} test images, expect 95 % intervals of about ±{loss:.4f} "
        f"of loss and ±{points:.2f} points of accuracy{assumed}"
    )
    half_width, key, bound = {
        "test_loss": (loss, "report.equivalence_loss", spec.report.equivalence_loss),
        "test_accuracy": (points, "report.equivalence_points", spec.report.equivalence_points),
    }[spec.decided_by]
    return f"{fact}; too wide for 'equivalent', which needs ±{bound:g} ({key})" if half_width > bound else fact


def _early_stopping(spec: JobSpec) -> str:
    search, num_train = spec.search, _num_train(spec, "search")
    grace, found = spec.grace_epochs(num_train), rungs(spec, num_train)
    if grace is None:
        return "none"
    if not found:
        return f"never: no trial stops before epoch {grace}, and search.num_epochs is {search.num_epochs}"
    return f"decides after epoch {', '.join(map(str, found))}"


def _batch_sizes(spec: JobSpec) -> list[int]:
    """Return the recipe's batch size and the searched ones, a range's ends alone, smallest first."""
    searched = spec.search.space.get("batch_size")
    return sorted({spec.recipe.batch_size, *(map(int, searched.extremes) if searched else ())})


def _num_train(spec: JobSpec, stage: str) -> int:
    """Return the examples that a training of a stage learns from."""
    sizes = _sizes(spec)
    num_held_out = 0 if stage == "retrain" else sizes.num_held_out(spec.data.num_validation)
    return sizes.num_training - num_held_out


def _sizes(spec: JobSpec) -> data.SizesOfData:
    folder = data.data_dir_of(spec.data.dir)
    return _sizes_in(spec.data.name, folder, spec.data.transpose, spec.data.test_fraction)


_sizes_in = lru_cache(maxsize=1)(data.sizes_of_data)  # to list 100,000 images takes a second


def _work(spec: JobSpec) -> Iterator[tuple[str, int, set[int]]]:
    """Yield each stage's name, the epochs that it takes at most, and the smallest and the largest batch."""
    sizes = _batch_sizes(spec)
    ends = {sizes[0], sizes[-1]}
    yield "search", spec.search.num_trials * spec.search.num_epochs, ends
    if spec.final:
        yield "final", spec.most_final_trainings * spec.final_epochs, ends
    if spec.retrain:
        yield "retrain", spec.retrain.num_trainings * spec.retrain.num_epochs, ends


# --- time --------------------------------------------------------------------------------------------------------


def known_speed(spec: JobSpec, storage: StoragePath) -> Speed | None:
    """Return the speed of the latest run on the same data, or of this machine's benchmark; None without either."""
    for run in readable_runs(storage, on_damage=lambda _: None):
        started = run.state.started
        if started and started.spec.data.name == spec.data.name and (speed := _speed_of(run)):
            return speed
    return _benchmarked(storage / "benchmark.json")


def measured_speed(spec: JobSpec) -> Speed | None:
    """Measure this machine for a second; None where trials use GPUs and there is none here."""
    from mnist_ray.pipeline.probe import seconds_per_image  # imports torch

    image_s = seconds_per_image(spec)
    if image_s is None:
        return None
    source = (
        f"{1e3 * image_s:.3f} ms an image: a rough figure, from some steps of one training on this machine just now"
    )
    return Speed(image_s, source, is_rough=True)


def _speed_of(run: RunDir) -> Speed | None:
    times = [
        metrics.elapsed_s / metrics.train.num_examples
        for trial in run.state.trainings("search")
        for metrics in trial.history[1:]
        if metrics.train.num_examples
    ]
    if not times:
        return None
    median_s = statistics.median(times)
    return Speed(median_s, f"{1e3 * median_s:.3f} ms an image, from run {run.path.name}", start_up_s(run.state))


def _benchmarked(file: StoragePath) -> Speed | None:
    try:
        sections = json.loads(read(file))["sections"]
        rows = [row for section in sections for row in section["rows"]]
        step_ms = next(row["wall ms"] for row in rows if row.get("loop") == "mnist_ray" and row["threads"] == 1)
    except (OSError, ValueError, KeyError, StopIteration):
        return None
    return Speed(step_ms / 128e3, f"{step_ms / 128:.3f} ms an image, from {file}")


def _estimates(spec: JobSpec, capacity: Capacity, speed: Speed) -> list[Estimate]:
    search, retrain = spec.search, spec.retrain
    epoch_s = _num_train(spec, "search") * speed.image_s
    at_once = min(capacity.num_concurrent_trials(spec), search.num_trials)
    most = search.num_trials * search.num_epochs * epoch_s / at_once
    expected = search.num_trials * expected_epochs(spec) * epoch_s / at_once
    start_up = START_UP_S if speed.start_up_s is None else speed.start_up_s
    estimates = [Estimate("start-up", *(2 * [start_up + END_S])), Estimate("search", expected, most)]
    if spec.final:
        rounds = math.ceil(spec.most_final_trainings / capacity.num_concurrent_trials(spec))
        estimates.append(Estimate("final", *(2 * [rounds * spec.final_epochs * epoch_s])))
    if retrain:
        num_concurrent = capacity.num_concurrent_retrainings(retrain, retrain.num_trainings)
        rounds = math.ceil(retrain.num_trainings / num_concurrent)
        most_s = rounds * retrain.num_epochs * _num_train(spec, "retrain") * speed.image_s
        estimates.append(Estimate("retrain", most_s / max(1, capacity.num_workers(retrain) // num_concurrent), most_s))
    return estimates


def _faster(retrain: Retrain, capacity: Capacity) -> str:
    """Return which settings are faster here, and why; "" where these are."""
    alone = retrain.model_copy(update={"workers": 1})
    if retrain.fewest_workers == 1 or capacity.num_concurrent_retrainings(alone, retrain.num_trainings) == 1:
        return ""
    return "; --set retrain.workers=1 is faster here: separate trainings need not exchange gradients"


def expected_epochs(spec: JobSpec) -> float:
    """Return the mean epochs of a trial if no more go on at a rung than early stopping lets through at its end."""
    search, rule = spec.search, spec.search.early_stopping
    factor = rule.reduction_factor if rule else 1.0
    num_kept = max(spec.final.top_k if spec.final else 1, len(spec.fixed_trials))
    expected, reached, num_left = 0.0, 0, float(search.num_trials)
    for rung in rungs(spec, _num_train(spec, "search")):
        expected += num_left * (rung - reached)
        reached, num_left = rung, min(num_left, max(num_left / factor, num_kept))
    return (expected + num_left * (search.num_epochs - reached)) / search.num_trials
