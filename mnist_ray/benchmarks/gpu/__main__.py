"""Check and measure trainings on a GPU, part by part: python -m mnist_ray.benchmarks.gpu [PART...] [--data-dir FOLDER]

Prints one JSON line for each check, then a table, and exits 1 if a check fails. Each part ends within eight minutes.
FOLDER holds MNIST's IDX files, packed or not, at any depth; without it images are made up. With `--device cpu` it is a
rehearsal on few images: every line runs, and no figure means anything. The part ray says 'not run' without Ray.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from mnist_ray import __version__
from mnist_ray.benchmarks.findings import Machine, Section, markdown, put_between, write_findings
from mnist_ray.benchmarks.gpu.bench import FULL, REHEARSAL, Bench, Check
from mnist_ray.benchmarks.gpu.images import made_up, read_mnist
from mnist_ray.benchmarks.gpu.parts import PARTS, in_new_process, run_part
from mnist_ray.pipeline.provenance import gpu_names, processor

PROGRAM = "python -m mnist_ray.benchmarks.gpu"
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
REHEARSED = "A rehearsal on a CPU: the figures say nothing of a GPU. "


def main() -> int:
    """Run the parts that the command line names. Returns 0, 1 where a check fails, 2 where nothing can run."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal (default: cuda)")
    parser.add_argument("--data-dir", type=Path, help="holds MNIST's IDX files (default: made-up images)")
    parser.add_argument("--out", type=Path, help="write what was found to this file, as JSON")
    parser.add_argument("--page", type=Path, help=f"put the tables into this page, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"PART {unknown[0]}: use some of {', '.join(PARTS)}")
    machine = this_machine()
    if arguments.device == "cuda" and not machine.gpus:
        print("torch finds no CUDA device: run on a machine with a GPU, or pass --device cpu", file=sys.stderr)
        return 2
    try:
        bench = a_bench(arguments)
    except (OSError, ValueError) as error:
        print(f"--data-dir {arguments.data_dir}: {error}", file=sys.stderr)
        return 2
    return report(arguments, machine, run(arguments.parts or list(PARTS), bench))


def a_bench(arguments: argparse.Namespace) -> Bench:
    """Return the device with its images. Raises OSError, ValueError."""
    num_images = (FULL if arguments.device == "cuda" else REHEARSAL).num_images
    images = read_mnist(arguments.data_dir) if arguments.data_dir else made_up(num_images)
    return Bench(torch.device(arguments.device), images.take(np.arange(min(num_images, len(images)))))


def run(parts: Sequence[str], bench: Bench) -> dict[str, list[Check]]:
    """Run the parts one after another, and print each check as it is done."""
    found: dict[str, list[Check]] = {}
    for part in parts:
        found[part] = []
        for check in run_part(part, bench):
            found[part].append(check)
            line = {"part": part, "check": check.name, "ok": check.is_ok, **check.figures}
            line |= {"not run": check.not_run} if check.not_run else {}
            line |= {"rehearsal": True} if bench.is_rehearsal else {}
            print(json.dumps(line), flush=True)
    return found


def report(arguments: argparse.Namespace, machine: Machine, found: Mapping[str, Sequence[Check]]) -> int:
    """Print the tables and write what was asked for. Returns 1 where a check failed, else 0. Raises OSError."""
    images = "On MNIST. " if arguments.data_dir else "On made-up images. "
    about = images + (REHEARSED if arguments.device == "cpu" else "")
    sections = [section(part, checks, about) for part, checks in found.items()]
    command, at = " ".join([PROGRAM, *arguments.parts, "--device", arguments.device]), time.strftime("%Y-%m-%d")
    text = markdown(sections, machine, command, at)
    print(text)
    if arguments.out:
        write_findings(arguments.out, sections, machine, command, at)
    if arguments.page:
        put_between(arguments.page, BEGIN, END, text)
    return int(any(check.is_ok is False for checks in found.values() for check in checks))


def section(part: str, checks: Sequence[Check], about: str) -> Section:
    """Make the table of a part. about: what holds for all parts."""
    rows = [
        {
            "check": check.name,
            "found": "; ".join(
                f"{name} {in_words(value)}" for name, value in check.figures.items() if value not in ({}, None)
            ),
            "result": f"not run: {check.not_run}" if check.not_run else RESULTS[check.is_ok],
        }
        for check in checks
    ]
    return Section(PARTS[part].title, about + PARTS[part].text, rows, {})


RESULTS = {True: "ok", False: "failed", None: ""}


def in_words(value: object) -> str:
    """Write a figure, a list or a mapping of figures for a cell of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {in_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def this_machine() -> Machine:
    """Describe this machine; a process of its own asks for GPUs, since one that has met a GPU cannot fork."""
    process, connection = in_new_process(_send_gpus)
    gpus = connection.recv()
    process.join()
    num_cpus = len(os.sched_getaffinity(0))
    return Machine(processor(), num_cpus, gpus, platform.python_version(), torch.__version__, __version__)


def _send_gpus(connection: Connection) -> None:
    connection.send(list(gpu_names()))


if __name__ == "__main__":
    sys.exit(main())
