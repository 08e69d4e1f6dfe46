"""How fast this machine does what mnist_ray does, part by part."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mnist_ray import data
from mnist_ray.benchmarks.findings import Machine, Section, markdown, put_between, write_findings

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
PARTS = ("steps", "kernels", "workers", "retraining", "search", "groups", "startup", "peers")
WITHOUT_MNIST = {"startup"}


def benchmark(parts: Sequence[str], data_dir: Path, num_rounds: int, say: Callable[[str], None]) -> list[Section]:
    """Measure these PARTS one after another, each alone on the machine. Raises DataError, SpecError."""
    if set(parts) - WITHOUT_MNIST:
        data.fetch("mnist", data_dir)
    sections: list[Section] = []
    for part in parts:
        say(f"{time.strftime('%H:%M:%S')} {part}")
        sections += _measure(part, data_dir, num_rounds)
    return sections


def _measure(part: str, data_dir: Path, num_rounds: int) -> list[Section]:
    """Each part imports its own: torchvision for the steps, Ray for retraining, search and peers."""
    if part == "steps":
        from mnist_ray.benchmarks.steps import measure_steps

        return [measure_steps(data_dir, num_rounds)]
    if part == "kernels":
        from mnist_ray.benchmarks.kernels import measure_kernels

        return [measure_kernels(data_dir, num_rounds)]
    if part == "workers":
        from mnist_ray.benchmarks.workers import measure_workers

        return measure_workers(data_dir, num_rounds)
    if part == "retraining":
        from mnist_ray.benchmarks.jobs import measure_retraining

        return [measure_retraining(data_dir, num_rounds)]
    if part == "groups":
        from mnist_ray.benchmarks.groups import measure_groups

        return [measure_groups(data_dir, num_rounds)]
    if part == "startup":
        from mnist_ray.benchmarks.startup import measure_startup

        return [measure_startup(num_rounds)]
    if part == "peers":
        from mnist_ray.benchmarks.peers import measure_peers

        return measure_peers(data_dir, num_rounds)
    from mnist_ray.benchmarks.jobs import measure_search

    return [measure_search(data_dir)]


def report(sections: Sequence[Section], command: str, file: Path, page: Path | None) -> str:
    """Write what was found to `file` (JSON), and into `page` if there is one; returns it as text. Raises OSError."""
    machine, at = Machine.this(), time.strftime("%Y-%m-%d")
    write_findings(file, sections, machine, command, at)
    text = markdown(sections, machine, command, at)
    if page is not None:
        put_between(page, BEGIN, END, text)
    return text
