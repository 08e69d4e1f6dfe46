"""The commands that examine this machine: doctor, benchmark."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist_ray.cli.arguments import add_command, add_storage, storage_of
from mnist_ray.cli.documents import add_json, print_document
from mnist_ray.errors import SpecError


def add_machine_commands(commands: Any) -> None:
    """Add doctor and benchmark to the parser."""
    doctor = add_command(commands, "doctor", _doctor, "examine this machine, the data, the storage and the cluster")
    doctor.add_argument("--data-dir", help="the folder of the data sets")
    doctor.add_argument("--address", help="the address of a Ray cluster")
    add_json(doctor)
    add_storage(doctor)
    _add_benchmark(commands)


def _add_benchmark(commands: Any) -> None:
    text = "measure each part of a job on this machine, in comparison with a usual training loop; takes minutes"
    benchmark = add_command(commands, "benchmark", _benchmark, text)
    benchmark.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="steps, kernels, workers, retraining, search, groups, startup, peers (default: all)",
    )
    benchmark.add_argument("--data-dir", help="the folder of MNIST, downloaded if missing")
    benchmark.add_argument("--rounds", type=int, default=5, help="how often each part is measured (default: 5)")
    benchmark.add_argument(
        "--json",
        type=Path,
        default=Path("results/benchmark.json"),
        help="the file for the figures (default: results/benchmark.json)",
    )
    benchmark.add_argument("--page", type=Path, help="a page whose marked section is replaced by the tables")


def _doctor(arguments: argparse.Namespace) -> int:
    from mnist_ray import data
    from mnist_ray.pipeline.doctor import Finding, examine
    from mnist_ray.ray_backend.address import target_of
    from mnist_ray.ray_backend.cluster import connected

    findings = examine(data.data_dir_of(arguments.data_dir), storage_of(arguments))
    if not target_of(arguments.address).is_local:
        try:
            with connected(arguments.address, None, verbose=False) as capacity:
                text = f"{capacity.cpus} CPUs, {capacity.gpus} GPUs, the same versions on every node"
                findings.append(Finding("cluster", True, text))
        except SpecError as error:
            findings.append(Finding("cluster", False, str(error)))
    is_good = all(finding.is_good for finding in findings)
    if arguments.json:
        print_document(is_good=is_good, findings=[asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{'ok ' if finding.is_good else 'BAD'} {finding.what:<18} {finding.text}")
    return 0 if is_good else SpecError.exit_code


def _benchmark(arguments: argparse.Namespace) -> int:
    from mnist_ray import data
    from mnist_ray.benchmarks.run import PARTS, benchmark, report

    parts = arguments.parts or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise SpecError(f"PART {unknown[0]!r} is unknown: use some of {', '.join(PARTS)}")
    if arguments.rounds < 1:
        raise SpecError(f"--rounds {arguments.rounds}: must be 1 or more")
    data_dir = data.data_dir_of(arguments.data_dir)
    sections = benchmark(parts, data_dir, arguments.rounds, lambda line: print(line, file=sys.stderr))
    command = " ".join(["mnist-ray benchmark", *arguments.parts, f"--rounds {arguments.rounds}"])
    print(report(sections, command, arguments.json, arguments.page))
    return 0
