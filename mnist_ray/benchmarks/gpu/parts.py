"""The parts of a benchmark of a GPU. Each runs in a process of its own, which is ended when its time is up."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from mnist_ray.benchmarks.gpu.bench import Bench, Check
from mnist_ray.benchmarks.gpu.ranks import check_ranks
from mnist_ray.benchmarks.gpu.ray_jobs import check_ray
from mnist_ray.benchmarks.gpu.resume import check_resume
from mnist_ray.benchmarks.gpu.speed import measure_speed
from mnist_ray.benchmarks.gpu.steps import check_steps
from mnist_ray.benchmarks.gpu.together import check_together

PART_LIMIT_S = 470.0  # so that a part ends within eight minutes


@dataclass(frozen=True)
class Part:
    """Some checks. text: how they are done."""

    title: str
    text: str
    run: Callable[[Bench], Iterator[Check]]


PARTS: Mapping[str, Part] = {
    "steps": Part(
        "Captured, eager and CPU steps",
        "Differences are relative: of a loss, or of the distance that a tensor has moved. eager_to_eager is what the "
        "same comparison finds between eager steps and themselves.",
        check_steps,
    ),
    "ranks": Part(
        "A group of one rank",
        "One GPU cannot have two ranks of NCCL, so this is what several ranks use, called in a group of one.",
        check_ranks,
    ),
    "resume": Part(
        "Going on from a checkpoint", "A training with all parts, interrupted after an epoch.", check_resume
    ),
    "together": Part(
        "Trainings on one GPU",
        "Each in a process of its own. Epochs after the first are timed, validation included.",
        check_together,
    ),
    "speed": Part(
        "Speed",
        "A training of all images has no validation. start_up_s is until its first epoch, the capture included. Steps "
        "are medians of rounds in turns.",
        measure_speed,
    ),
    "ray": Part("Under Ray", "A small job on digits, run by Ray Tune and Ray Train on this machine.", check_ray),
}


def run_part(name: str, bench: Bench) -> Iterator[Check]:
    """Yield what a part finds as it finds it; the last check says whether the part ended well, and in what time."""
    began = time.monotonic()
    process, connection = in_new_process(_run, name, bench)
    problem: str | None = f"is not done after {PART_LIMIT_S:g} s"
    try:
        while connection.poll(max(began + PART_LIMIT_S - time.monotonic(), 0)):
            received: Check | str | None = connection.recv()
            if not isinstance(received, Check):
                problem = received
                break
            yield received
    except EOFError:
        problem = "ended without a word, see above"
    finally:
        _end(process)
    figures = {"seconds": round(time.monotonic() - began, 1)} | ({"problem": problem} if problem else {})
    yield Check("the whole part", figures, problem is None)


def in_new_process(target: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """Call `target` with a connection and the arguments in a fork of this process, which must not have computed."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def _run(connection: Connection, name: str, bench: Bench) -> None:
    """In the process of a part: send its checks, then None, or in one line what went wrong."""
    os.setpgrp()  # so that the part's own processes end with it
    os.dup2(2, 1)  # what others print is no line of JSON
    try:
        for check in PARTS[name].run(bench):
            connection.send(check)
        connection.send(None)
    except Exception as error:
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


def _end(process: BaseProcess) -> None:
    """Wait a little for the process of a part, then end it with all of its own."""
    process.join(10)
    if process.is_alive() and process.pid:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
