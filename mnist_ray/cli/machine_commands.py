"""The commands that examine this machine: doctor, benchmark."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mnist_ray.cli.arguments import add_command, add_storage, storage_of
from mnist_ray.errors import SpecError


def add_machine_commands(commands: Any) -> None:
    """Add doctor and benchmark to the parser."""
    doctor = add_command(commands, "doctor", _doctor, "examine this machine, the data, the storage and the cluster")
    doctor.add_argument("--data-dir", help="where the data sets lie")
    doctor.add_argument("--address", help="of a Ray cluster")
    add_storage(doctor)
    _add_benchmark(commands)


def _add_benchmark(commands: Any) -> None:
    text = "measure how fast this machine is at each part of a job, beside the usual loop; some minutes"
    benchmark = add_command(commands, "benchmark", _benchmark, text)
    benchmark.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="steps, kernels, workers, retraining, search, groups, startup, peers (default: all)",
    )
    benchmark.add_argument("--data-dir", help="where MNIST lies or goes")
    benchmark.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    benchmark.add_argument("--json", type=Path, default=Path("results/benchmark.json"), help="write the figures there")
    benchmark.add_argument("--page", type=Path, help="put the tables between this page's marker lines")


def _doctor(arguments: argparse.Namespace) -> int:
    from mnist_ray import data
    from mnist_ray.pipeline.doctor import Finding, examine
    from mnist_ray.ray_backend.address import target_of
    from mnist_ray.ray_backend.cluster import connected

    findings = examine(data.data_dir_of(arguments.data_dir), storage_of(arguments))
    if not target_of(arguments.address).is_local:
        try:
            with connected(arguments.address, None, verbose=False) as capacity:
                text = f"{capacity.cpus} CPUs, {capacity.gpus} GPUs, same versions on every node"
                findings.append(Finding("cluster", True, text))
        except SpecError as error:
            findings.append(Finding("cluster", False, str(error)))
    for finding in findings:
        print(f"{'ok ' if finding.is_good else 'BAD'} {finding.what:<18} {finding.text}")
    return 0 if all(finding.is_good for finding in findings) else SpecError.exit_code


def _benchmark(arguments: argparse.Namespace) -> int:
    from mnist_ray import data
    from mnist_ray.benchmarks.run import PARTS, benchmark, report

    parts = arguments.parts or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise SpecError(f"PART {unknown[0]!r} is not measured: use some of {', '.join(PARTS)}")
    if arguments.rounds < 1:
        raise SpecError(f"--rounds {arguments.rounds}: must be 1 or more")
    data_dir = data.data_dir_of(arguments.data_dir)
    sections = benchmark(parts, data_dir, arguments.rounds, lambda line: print(line, file=sys.stderr))
    command = " ".join(["mnist-ray benchmark", *arguments.parts, f"--rounds {arguments.rounds}"])
    print(report(sections, command, arguments.json, arguments.page))
    return 0
