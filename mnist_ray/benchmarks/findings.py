"""What a benchmark found: tables and ratios, for people and for programs."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_ray import __version__
from mnist_ray.pipeline.provenance import gpu_names, processor
from mnist_ray.storage.files import read, write_atomic


@dataclass(frozen=True)
class Section:
    """One part of the benchmark."""

    title: str
    text: str  # how it was measured, and what the columns are
    rows: list[dict[str, Any]]
    ratios: dict[str, float]  # what matters, by a line that says what it is

    def markdown(self) -> str:
        lines = [f"- {what}: **{value:.3g}**" for what, value in self.ratios.items()]
        table = "\n".join(_table(self.rows))
        return "\n".join([f"### {self.title}", "", self.text, "", table, "", *([*lines, ""] if lines else [])])


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table as tabulate's "github" has it, which a machine with torch alone has not got."""
    columns = [[str(name), *(str(row[name]) for row in rows)] for name in rows[0]]
    widths = [max(len(column[0]) + 2, *map(len, column)) for column in columns]
    for number, cells in enumerate(zip(*columns, strict=True)):
        yield "".join(f"| {cell.ljust(width)} " for cell, width in zip(cells, widths, strict=True)) + "|"
        if number == 0:
            yield "".join(f"|{'-' * (width + 2)}" for width in widths) + "|"


@dataclass(frozen=True)
class Machine:
    """Where the figures come from."""

    processor: str
    num_cpus: int
    gpus: list[str]
    python: str
    torch: str
    mnist_ray: str

    @classmethod
    def this(cls) -> "Machine":
        import torch
        from joblib import cpu_count

        python, of_torch = platform.python_version(), torch.__version__
        return cls(processor(), cpu_count(), list(gpu_names()), python, of_torch, __version__)

    def __str__(self) -> str:
        gpus = ", ".join(self.gpus) or "no GPU"
        return (
            f"{self.num_cpus} CPUs ({self.processor}), {gpus}, Python {self.python}, torch {self.torch}, "
            f"mnist_ray {self.mnist_ray}"
        )


def markdown(sections: Sequence[Section], machine: Machine, command: str, at: str) -> str:
    heading = f"Measured with `{command}` on {at}: {machine}."
    return "\n".join([heading, "", *(section.markdown() for section in sections)]).rstrip()


def write_findings(path: Path, sections: Sequence[Section], machine: Machine, command: str, at: str) -> None:
    """As JSON. Raises OSError."""
    body = {"command": command, "at": at, "machine": asdict(machine), "sections": [asdict(each) for each in sections]}
    write_atomic(path, json.dumps(body, indent=2).encode() + b"\n")


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between the page's two marker lines. Raises ValueError where it has not got them, OSError."""
    before, found, rest = read(page).decode("utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{page}: lacks the lines {begin} and {end}: add them where the tables belong")
    write_atomic(page, f"{before}{begin}\n{text}\n{end}{after}".encode())
