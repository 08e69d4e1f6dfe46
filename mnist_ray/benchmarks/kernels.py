"""The gain of each fast kernel: a step without it, beside a step with all of them and one of plain torch.

A kernel is kept if it saves 5 % of a step or more, at batch size 64 or 128, on one thread. The exchange between ranks
is measured with two workers (`workers.py`). torch.optim.Adam also loads torch's compiler at its first step in every
process; that is measured in new processes.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from mnist_ray import data
from mnist_ray.benchmarks.findings import Section
from mnist_ray.config import TrainingConfig
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples
from mnist_ray.training.kernels.selection import AUTO, PLAIN, Kernels
from mnist_ray.training.loop import Steps, TrainState
from mnist_ray.training.optimizer import optimizer_for
from mnist_ray.training.process import prepare_to_train

BATCH_SIZES = (64, 128)
FEWEST_ROUNDS = 7
WARM_UP_STEPS = 2
STEPS_PER_ROUND = 20
ALL, PLAIN_TORCH = "all kernels", "plain torch"
VARIANTS: Mapping[str, Kernels] = {
    ALL: AUTO,
    PLAIN_TORCH: PLAIN,
    "without channels_last": replace(AUTO, channels_last=False),
    "without dropout": replace(AUTO, dropout=False),
    "without flat_adam": replace(AUTO, flat_adam=False),
}

# CPU seconds of one step, the mean over a round: by (variant, batch size), one a round
Rounds = dict[tuple[str, int], list[float]]
# CPU seconds of the first optimizer step of a new process, by variant, one a round
FirstSteps = dict[str, list[float]]
FIRST_STEPS_OF = (ALL, "without flat_adam")


def measure_kernels(data_dir: Path, num_rounds: int) -> Section:
    """Measure all variants in turns, in one process of one thread, in FEWEST_ROUNDS rounds or more.

    data_dir: has MNIST. Takes about ten seconds a round.
    """
    num_rounds = max(num_rounds, FEWEST_ROUNDS)
    rounds: Rounds = _in_new_process(_measure, data_dir, num_rounds)
    first_steps: FirstSteps = {name: [] for name in FIRST_STEPS_OF}
    for _ in range(num_rounds):
        for name, measured in first_steps.items():
            measured.append(_in_new_process(_measure_first_step, VARIANTS[name]))
    return section(rounds, first_steps)


def _in_new_process(measure: Callable[..., None], *arguments: object) -> Any:
    """Return what `measure`, called with a connection and the arguments, sends from a process of its own."""
    context = multiprocessing.get_context("spawn")  # memory settings, threads and imports are a process's
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(theirs, *arguments))
    process.start()
    theirs.close()
    sent = ours.recv()
    process.join()
    return sent


def section(rounds: Rounds, first_steps: FirstSteps) -> Section:
    """Make the table of steps and of each kernel's gain."""
    rows, ratios = [], {}
    for name in VARIANTS:
        row: dict[str, object] = {"kernels": name}
        for batch_size in BATCH_SIZES:
            row[f"step of {batch_size}, ms"] = round(1e3 * statistics.median(rounds[name, batch_size]), 2)
            if name != ALL:
                gain = gain_of(rounds, name, batch_size)
                row[f"gain at {batch_size}"] = f"{gain:.1%}"
                ratios[f"share of a step {name} that all kernels save, batch {batch_size}"] = gain
        measured = first_steps.get(name)
        row["first optimizer step, s"] = round(statistics.median(measured), 3) if measured else ""
        rows.append(row)
    return Section(
        "Kernels",
        "CPU time of a training step on one thread of one process: all fast kernels, none (plain torch), and each one "
        f"taken out. Medians of {len(rounds[ALL, BATCH_SIZES[0]])} rounds in turns, {STEPS_PER_ROUND} steps each. The "
        "gain is the median over rounds of the share of the row's step that is saved by all kernels. The first step of "
        "an optimizer is measured in new processes: torch.optim.Adam loads torch's compiler there.",
        rows,
        ratios,
    )


def gain_of(rounds: Rounds, name: str, batch_size: int) -> float:
    """Return the median over rounds of the share of the variant's step that all kernels save."""
    pairs = zip(rounds[ALL, batch_size], rounds[name, batch_size], strict=True)
    return statistics.median(1 - fast / slow for fast, slow in pairs)


def _measure(connection: Connection, data_dir: Path, num_rounds: int) -> None:
    """In a process of its own: send the Rounds."""
    prepare_to_train(1)
    images = data.load_training("mnist", data_dir)
    examples, pixels = Examples.of(images, torch.device("cpu")), data.pixel_statistics(images.images)
    steps = {}
    for name, kernels in VARIANTS.items():
        state = TrainState.initial(TrainingConfig(num_epochs=1), pixels, kernels=kernels)
        steps[name] = Steps(state.model, state.optimizer, examples, Worker())
        steps[name].begin_epoch()
    rounds: Rounds = {}
    for _ in range(num_rounds):
        for batch_size in BATCH_SIZES:
            for name, each in steps.items():
                rounds.setdefault((name, batch_size), []).append(_seconds_of_a_step(each, batch_size, len(examples)))
    connection.send(rounds)


def _measure_first_step(connection: Connection, kernels: Kernels) -> None:
    """In a process of its own: send the CPU seconds of the first step of an optimizer of one parameter."""
    prepare_to_train(1)
    parameter = torch.nn.Parameter(torch.zeros(8))
    parameter.grad = torch.ones(8)
    began = time.process_time()
    optimizer = optimizer_for([parameter], 0.001, 0.0, kernels)
    optimizer.advance()
    optimizer.apply()
    connection.send(time.process_time() - began)


def _seconds_of_a_step(steps: Steps, batch_size: int, num_examples: int) -> float:
    began = 0.0
    for step in range(WARM_UP_STEPS + STEPS_PER_ROUND):
        if step == WARM_UP_STEPS:
            began = time.process_time()  # one thread that never waits: other work on the machine does not count
        steps.take(torch.randint(num_examples, (batch_size,)), batch_size)
    return (time.process_time() - began) / STEPS_PER_ROUND
