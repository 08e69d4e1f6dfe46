"""Several one-thread workers at the same global batch size, and what they spend on exchanges."""

import atexit
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mnist_ray import data
from mnist_ray.benchmarks.findings import Section
from mnist_ray.config import TrainingConfig
from mnist_ray.training.distributed import Worker, exchanging_s
from mnist_ray.training.examples import Examples
from mnist_ray.training.kernels.selection import AUTO, Kernels
from mnist_ray.training.loop import Steps, TrainState
from mnist_ray.training.process import group_on_this_machine, prepare_to_train

BATCH_SIZES = (32, 128, 512)
LOCAL_BATCH_SIZES = (8, 16, 32, 64, 128)  # of one worker alone, for the model
MODELLED_WORKERS = (1, 2, 4, 8, 16)
MODELLED_BATCH_SIZE = 128
ROUND_S = 1.5
WAIT_S = 120.0


@dataclass(frozen=True)
class Measured:
    """Seconds of one step, the mean over a round."""

    wall_s: float
    exchanging_s: float  # waiting for the other worker included


class Team:
    """Workers in processes of their own, which do rounds of steps when asked."""

    def __init__(self, num_workers: int, data_dir: Path, kernels: Kernels = AUTO) -> None:
        context = multiprocessing.get_context("spawn")
        folder = tempfile.mkdtemp(prefix="mnist-ray-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        meeting_point = Path(folder, "meeting")
        self._connections: list[Connection] = []
        for rank in range(num_workers):
            ours, theirs = context.Pipe()
            context.Process(target=_serve, args=(theirs, rank, num_workers, meeting_point, data_dir, kernels)).start()
            theirs.close()
            self._connections.append(ours)

    def run(self, batch_size: int) -> Measured:
        """A round; as the slowest worker measured it."""
        self.begin(batch_size)
        return self.measured()

    def begin(self, batch_size: int) -> None:
        for connection in self._connections:
            connection.send(batch_size)

    def measured(self) -> Measured:
        """Of the round that was begun."""
        measured: list[Measured] = [connection.recv() for connection in self._connections]
        return max(measured, key=lambda each: each.wall_s)

    def end(self) -> None:
        for connection in self._connections:
            connection.send(None)


def _serve(
    connection: Connection, rank: int, num_workers: int, meeting_point: Path, data_dir: Path, kernels: Kernels
) -> None:
    """In the process of a worker: do a round for each batch size received, until None."""
    prepare_to_train(1)
    worker = Worker(rank, num_workers)
    images = data.load_training("mnist", data_dir)
    examples = Examples.of(images, worker.device)
    pixels = data.pixel_statistics(images.images)
    state = TrainState.initial(TrainingConfig(num_epochs=1), pixels, worker, kernels=kernels)
    steps = Steps(state.model, state.optimizer, examples, worker)
    steps.begin_epoch()
    with group_on_this_machine(rank, num_workers, meeting_point, WAIT_S, kernels):
        while (batch_size := connection.recv()) is not None:
            connection.send(_round(steps, len(examples), worker, batch_size))


def _round(steps: Steps, num_examples: int, worker: Worker, batch_size: int) -> Measured:
    generator = torch.Generator().manual_seed(0)  # the same batches on all workers
    num_steps = max(round(ROUND_S / (2e-4 * batch_size)), 10)
    began, exchanged_s = 0.0, 0.0
    for step in range(num_steps + 5):
        if step == 5:  # the first ones warm up
            began, exchanged_s = time.perf_counter(), exchanging_s()
        batch = torch.randint(num_examples, (batch_size,), generator=generator)
        steps.take(worker.share_of(batch), batch_size)
    wall_s = time.perf_counter() - began
    return Measured(wall_s / num_steps, (exchanging_s() - exchanged_s) / num_steps)


def measure_workers(data_dir: Path, num_rounds: int) -> list[Section]:
    """Measure one worker, two, two over gloo, and two that exchange nothing, in turns; then model more.

    data_dir: has MNIST.
    """
    one, other, two = Team(1, data_dir), Team(1, data_dir), Team(2, data_dir)
    over_gloo = Team(2, data_dir, replace(AUTO, collectives=False))
    gloo: dict[int, list[Measured]] = {}
    rounds: dict[tuple[int, int], list[Measured]] = {}
    strangers: dict[int, list[Measured]] = {}
    for _ in range(num_rounds):
        for batch_size in BATCH_SIZES:
            rounds.setdefault((1, batch_size), []).append(one.run(batch_size))
            rounds.setdefault((2, batch_size), []).append(two.run(batch_size))
            gloo.setdefault(batch_size, []).append(over_gloo.run(batch_size))
            strangers.setdefault(batch_size, []).append(_beside_each_other(one, other, batch_size // 2))
        for batch_size in set(LOCAL_BATCH_SIZES) - set(BATCH_SIZES):
            rounds.setdefault((1, batch_size), []).append(one.run(batch_size))
    for team in (one, other, two, over_gloo):
        team.end()
    medians = {key: _median(measured) for key, measured in rounds.items()}
    apart = {batch_size: _median(measured) for batch_size, measured in strangers.items()}
    sections = [_measured_section(medians, apart, num_rounds), _modelled_section(medians)]
    return [sections[0], _gloo_section({size: rounds[2, size] for size in BATCH_SIZES}, gloo), sections[1]]


def _beside_each_other(one: Team, other: Team, batch_size: int) -> Measured:
    """A round of two workers that have nothing to do with each other but the machine; as the slower one measured it."""
    for team in (one, other):
        team.begin(batch_size)
    return max((team.measured() for team in (one, other)), key=lambda each: each.wall_s)


def _median(rounds: list[Measured]) -> Measured:
    return Measured(
        statistics.median(each.wall_s for each in rounds), statistics.median(each.exchanging_s for each in rounds)
    )


def _measured_section(
    medians: Mapping[tuple[int, int], Measured], apart: Mapping[int, Measured], num_rounds: int
) -> Section:
    rows, ratios = [], {}
    for batch_size in BATCH_SIZES:
        alone, together = medians[1, batch_size], medians[2, batch_size]
        efficiency, at_most = (alone.wall_s / each.wall_s / 2 for each in (together, apart[batch_size]))
        rows.append(
            {
                "global batch": batch_size,
                "1 worker, ms": round(1e3 * alone.wall_s, 2),
                "2 workers, ms": round(1e3 * together.wall_s, 2),
                "of it exchanging, ms": round(1e3 * together.exchanging_s, 2),
                "throughput": round(alone.wall_s / together.wall_s, 2),
                "of twice one worker's": f"{efficiency:.0%}",
                "exchanging nothing": f"{at_most:.0%}",
            }
        )
        ratios[f"throughput of two workers to twice that of one, global batch {batch_size}"] = efficiency
        ratios[f"the same to that of two workers that exchange nothing, global batch {batch_size}"] = (
            efficiency / at_most
        )
    return Section(
        "Two workers",
        f"One thread each, on this machine, without Ray; a step of the same global batch. Medians of {num_rounds} "
        "rounds in turns. Exchanging includes waiting for the other worker. The last column is what this "
        "machine leaves to two workers of half the batch each that have nothing to do with each other: a step costs "
        "something whatever its size, and the cores share caches and memory.",
        rows,
        ratios,
    )


def _gloo_section(ours: Mapping[int, list[Measured]], gloo: Mapping[int, list[Measured]]) -> Section:
    rows, ratios = [], {}
    for batch_size in BATCH_SIZES:
        own, other = _median(ours[batch_size]), _median(gloo[batch_size])
        pairs = zip(ours[batch_size], gloo[batch_size], strict=True)
        gain = statistics.median(1 - one.wall_s / over.wall_s for one, over in pairs)
        ratios[f"share of a two-worker step over gloo that the own exchange saves, global batch {batch_size}"] = gain
        rows.append(
            {
                "global batch": batch_size,
                "own exchange, step ms": round(1e3 * own.wall_s, 2),
                "of it exchanging, ms": round(1e3 * own.exchanging_s, 2),
                "over gloo, step ms": round(1e3 * other.wall_s, 2),
                "of it exchanging over gloo, ms": round(1e3 * other.exchanging_s, 2),
                "gain": f"{gain:.0%}",
            }
        )
    return Section(
        "Exchange over gloo",
        f"The same two workers, their step once over connections of their own (training/kernels/collectives.py) and "
        f"once over torch.distributed with gloo. Medians of {len(ours[BATCH_SIZES[0]])} rounds in turns. The gain is "
        "the median over rounds of the share of a step over gloo that is saved.",
        rows,
        ratios,
    )


def _modelled_section(medians: Mapping[tuple[int, int], Measured]) -> Section:
    """T(W) = T(1 worker with batch B / W) + (W - 1) times the exchanging measured for two."""
    exchange_s = medians[2, MODELLED_BATCH_SIZE].exchanging_s
    alone_s = medians[1, MODELLED_BATCH_SIZE].wall_s
    rows, predicted = [], {}
    for num_workers in MODELLED_WORKERS:
        compute_s = medians[1, MODELLED_BATCH_SIZE // num_workers].wall_s
        step_s = predicted[num_workers] = compute_s + (num_workers - 1) * exchange_s
        rows.append(
            {
                "workers": num_workers,
                "computing, ms": round(1e3 * compute_s, 2),
                "exchanging, ms": round(1e3 * (num_workers - 1) * exchange_s, 2),
                "step, ms": round(1e3 * step_s, 2),
                "throughput": round(alone_s / step_s, 2),
                "exchanging, share": f"{(num_workers - 1) * exchange_s / step_s:.0%}",
            }
        )
    best = min(predicted, key=lambda num_workers: predicted[num_workers])
    return Section(
        "More workers, modelled",
        f"Not measured: a global batch of {MODELLED_BATCH_SIZE} on more cores than two. Computing is what one worker "
        "was measured to take for its share of the batch; exchanging grows with the number of others, since each rank "
        "sends its 70 KB of gradients to each other one; a network between machines adds its own delay.",
        rows,
        {"workers beyond which a step gets slower again, by this model": float(best)},
    )
