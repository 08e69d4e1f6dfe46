"""The needs of a job before anything starts: CPUs, batches, upload, disk, time, cost, and what is in its way."""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from mnist_ray import data
from mnist_ray.config import JobSpec, Retrain
from mnist_ray.errors import DataError, SpecError
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.pipeline.early_stopping import rungs
from mnist_ray.record.disk_use import bytes_needed
from mnist_ray.record.rundir import RunDir, readable_runs
from mnist_ray.statistics import FEWEST_SEEDS, Spread, expected_half_width
from mnist_ray.storage.disk_space import check_space
from mnist_ray.storage.files import StoragePath, read, storage_path


@dataclass(frozen=True)
class Speed:
    """The time that one image takes in training, on one worker."""

    image_s: float
    source: str  # of the figure, for people


@dataclass(frozen=True)
class Estimate:
    """Seconds of wall time: as early stopping is expected to go, and without any."""

    stage: str
    expected_s: float
    at_most_s: float


@dataclass(frozen=True)
class Plan:
    """Everything that `mnist-ray plan` prints."""

    facts: list[tuple[str, str]]
    estimates: list[Estimate]  # empty where no speed is known
    obstacles: list[str]

    def lines(self, price_per_hour: float | None = None) -> list[str]:
        lines = [f"{name:<22} {text}" for name, text in self.facts]
        lines += [_estimate_line(each) for each in self.estimates]
        if self.estimates:
            total = Estimate(
                "in all",
                sum(each.expected_s for each in self.estimates),
                sum(each.at_most_s for each in self.estimates),
            )
            lines.append(_estimate_line(total))
            if price_per_hour is not None:
                low, high = (price_per_hour * seconds / 3600 for seconds in (total.expected_s, total.at_most_s))
                lines.append(
                    f"{'cost':<22} {low:.2f} to {high:.2f}, at {price_per_hour:g} an hour for the whole cluster"
                )
        return [*lines, *(f"IN THE WAY: {obstacle}" for obstacle in self.obstacles)]


def _estimate_line(estimate: Estimate) -> str:
    expected, most = (_duration(seconds) for seconds in (estimate.expected_s, estimate.at_most_s))
    text = expected if expected == most else f"{expected}, at most {most}"
    return f"{'time, ' + estimate.stage:<22} {text}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


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
    facts = list(_facts(spec, capacity, upload_bytes))
    facts.append(
        ("speed", speed.source if speed else "not known: run 'mnist-ray benchmark steps', or a short run first")
    )
    estimates = _estimates(spec, capacity, speed) if speed and not obstacles else []
    return Plan(facts, estimates, obstacles)


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
    yield "cluster", f"{capacity.cpus} CPUs, {capacity.gpus} GPUs"
    try:
        at_once = str(min(capacity.num_concurrent_trials(spec), search.num_trials))
    except SpecError:
        at_once = "none"
    yield (
        "trials",
        f"{search.num_trials}, {at_once} at once, each {search.cpus_per_trial} CPUs and {search.gpus_per_trial:g} GPUs",
    )
    parts = "the recipe as published" if len(spec.fixed_trials) == 1 else "the recipe as published, and with `training`"
    yield "fixed trials", f"{min(len(spec.fixed_trials), search.num_trials)} of them: {parts}"
    yield "early stopping", _early_stopping(spec)
    yield "final round", f"{spec.most_final_trainings} trainings at most, the recipe's among them"
    if retrain is None:
        yield "retraining", "none: the models of the final round are tested"
    else:
        yield (
            "retraining",
            f"{retrain.num_trainings} trainings, {capacity.num_concurrent_retrainings(retrain, retrain.num_trainings)} "
            f"side by side, each on {retrain.workers_in_words} workers of {retrain.cpus_per_worker} CPUs and "
            f"{retrain.gpus_per_worker} GPUs{_faster(retrain, capacity)}",
        )
    for stage, num_epochs, batches in _work(spec):
        steps = sorted({num_epochs * math.ceil(_num_train(spec, stage) / batch) for batch in batches})
        yield f"work, {stage}", f"{num_epochs:,} epochs at most, {' to '.join(f'{each:,}' for each in steps)} steps"
    if retrain is not None:
        yield "batch per worker", f"of a global batch of {', '.join(_shares(spec, retrain))}"
    if warning := spec.oversized_batch(_num_train(spec, "search")):
        yield "warning", warning
    folder = data.data_dir_of(spec.data.dir)
    try:
        found = data.presence(spec.data.name, folder, spec.data.transpose, spec.data.test_fraction)
    except DataError:
        found = "wrong, see below"  # an obstacle
    yield "data", f"{spec.data.name} in {folder}: {found}"
    yield "disk", f"{bytes_needed(spec) / 1e6:.0f} MB at most, in {storage_path(spec.storage).absolute()}"
    yield "verdict", _verdict_fact(spec)
    if upload_bytes is not None:
        yield "upload", f"{upload_bytes / 1e6:.1f} MB of the 100 MiB that Ray takes"


def _shares(spec: JobSpec, retrain: Retrain) -> Iterator[str]:
    """Yield a text for each batch size: how many images of a batch a worker gets."""
    for size in _batch_sizes(spec):
        ends = sorted({size / retrain.most_workers, size / retrain.fewest_workers})
        yield f"{size}: {' to '.join(f'{share:g}' for share in ends)}"


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
        return f"{by}; of these networks alone and never 'equivalent': {key} has fewer than {FEWEST_SEEDS}"
    loss = expected_half_width(SPREAD_OF_LOSS, num_seeds, num_images)
    points = 100 * expected_half_width(SPREAD_OF_ACCURACY, num_seeds, num_images, step=1.0)
    assumed = "" if spec.data.name == "mnist" else ", if they spread as on MNIST"
    fact = (
        f"{by}; 95 % interval of about ±{loss:.4f} of loss and ±{points:.2f} points of accuracy, by {num_seeds} seeds "
        f"each and {num_images:,} test images{assumed}"
    )
    half_width, key, bound = {
        "test_loss": (loss, "report.equivalence_loss", spec.report.equivalence_loss),
        "test_accuracy": (points, "report.equivalence_points", spec.report.equivalence_points),
    }[spec.decided_by]
    return f"{fact}; 'equivalent' cannot come out, since {key} is {bound:g}" if half_width > bound else fact


def _early_stopping(spec: JobSpec) -> str:
    search, num_train = spec.search, _num_train(spec, "search")
    grace, found = spec.grace_epochs(num_train), rungs(spec, num_train)
    if grace is None:
        return "none"
    if not found:
        return f"none: its grace of {grace} epochs leaves none of search.num_epochs {search.num_epochs}"
    return f"after epoch {', '.join(map(str, found))}"


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
    return Speed(median_s, f"{1e3 * median_s:.3f} ms an image, from run {run.path.name}")


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
    estimates = [Estimate("search", expected, most)]
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
    return "; retrain.workers=1 is faster here: trainings side by side need not wait for each other's gradients"


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
