"""Prints what a run comes to, value by value, so that two states of the code can be compared bit for bit.

python -m tools.reference --data-dir FOLDER --check tests/reference.txt

The package is used through its command line alone, in a process of its own. Everything is read from what a run leaves
in its folder for users: results.parquet, history.parquet, result.json and models/*.safetensors. The test logits are
computed here, by torch's own functions from the tensors' names. Nothing printed depends on the time, on a training's
id or on the machine's load. It does depend on the CPU's model, whose instructions decide how sums are rounded.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
START = "import sys; from mnist_ray.cli import main; sys.exit(main())"

HYPERPARAMETERS = ("learning_rate", "dropout", "batch_size", "seed", "num_epochs")
OUTCOMES = ("status", "epochs_done")
METRICS = tuple(f"{part}_{value}" for part in ("train", "val") for value in ("loss", "accuracy", "correct", "examples"))
TEST_METRICS = ("test_loss", "test_accuracy", "test_correct", "test_examples")

LOGITS_BATCH_SIZE = 500
NUM_DIGITS_TEST = 360  # of scikit-learn's 1,797 digits, drawn with the seed 0

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run whose values are printed; `settings` are overrides of its spec."""

    name: str
    spec: str
    settings: tuple[str, ...] = ()


DIGITS = Job("digits", "jobs/quickstart.yaml")
MNIST = Job(
    "mnist",
    "jobs/mnist.yaml",
    (
        "search.num_trials=4",
        "search.num_epochs=2",
        "final.top_k=2",
        "final.seeds=1",
        "final.keep_recipe_within_se=0",
        "retrain.num_epochs=2",
        "retrain.seeds=[0]",
    ),
)


def main() -> int:
    """Print the lines; returns 1 if they are not those of the file to check."""
    arguments = _parser().parse_args()
    data_dir: Path | None = arguments.data_dir
    jobs = [DIGITS] if data_dir is None else [DIGITS, MNIST]
    lines = []
    for job in jobs:
        for line in lines_of(job, data_dir, shlex.split(arguments.run_options)):
            print(line, flush=True)
            lines.append(line)
    if arguments.write:
        arguments.write.write_text("\n".join([*_header(), *lines, ""]), encoding="utf-8")
    return _report(arguments.check, lines, [job.name for job in jobs]) if arguments.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies; without it only the digits are run")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the lines there")
    parser.add_argument("--check", type=Path, metavar="FILE", help="say which lines differ from the file's")
    parser.add_argument(
        "--run-options", default="", metavar="TEXT", help="more options of `mnist-ray run`: --run-options='--verbose'"
    )
    return parser


# --- running -----------------------------------------------------------------------------------------------------


def lines_of(job: Job, data_dir: Path | None, run_options: Sequence[str]) -> list[str]:
    """Run the job in a temporary folder and return its lines. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="reference-") as folder:
        results = Path(folder) / "results"
        _run(job, data_dir, results, Path(folder) / "ray", run_options)
        images = digits_test_images() if data_dir is None or job == DIGITS else mnist_test_images(data_dir)
        return [f"{job.name} {line}" for line in run_lines(results / "reference", images)]


def _run(job: Job, data_dir: Path | None, results: Path, ray_dir: Path, run_options: Sequence[str]) -> None:
    """Trials one at a time, because the suggestions depend on which trials have ended."""
    options = ["--name", "reference", "--storage", str(results), "--ray-dir", str(ray_dir)]
    for setting in ("search.max_concurrent_trials=1", *job.settings):
        options += ["--set", setting]
    if data_dir is not None:
        options += ["--data-dir", str(data_dir.absolute())]
    command = [sys.executable, "-c", START, "run", job.spec, *options, *run_options]
    subprocess.run(command, cwd=ROOT, env=_environment(), stdout=sys.stderr, check=True)


def _environment() -> dict[str, str]:
    """This process's, with the package of this checkout first and no cluster to join."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


# --- reading a run -----------------------------------------------------------------------------------------------


def run_lines(run: Path, test_images: Tensor) -> Iterator[str]:
    """Each value of a finished run as `name: value`. test_images: (N, 1, 28, 28) uint8."""
    history = rows_of(run / "history.parquet")
    for name, training in named_trainings(rows_of(run / "results.parquet")):
        yield f"{name} configuration: {as_json(training, HYPERPARAMETERS)}"
        yield f"{name} outcome: {as_json(training, OUTCOMES)}"
        for row in history:
            if row["id"] == training["id"]:
                yield f"{name} epoch {row['epoch']}: {as_json(row, METRICS)}"
        if training["stage"] == "retrain":
            tensors = load_file(run / "models" / f"{training['id']}.safetensors")
            yield f"{name} test: {as_json(training, TEST_METRICS)}"
            yield f"{name} model: {tensors_sha256(tensors)}"
            yield f"{name} logits: {tensors_sha256({'logits': logits_of(tensors, test_images)})}"
    selected = json.loads((run / "result.json").read_text(encoding="utf-8"))["selected"]
    yield f"selected configuration: {as_json(selected['hyperparameters'], HYPERPARAMETERS)}"
    yield f"selected score: {selected['score']!r}"


def rows_of(table: Path) -> list[Row]:
    """A table's rows as plain values, without those that are missing."""
    records = pd.read_parquet(table).astype(object).to_dict("records")
    return [{str(name): value for name, value in record.items() if not pd.isna(value)} for record in records]


def named_trainings(results: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """Every training and a name for it that follows from what it trains, not from its id."""
    for number, row in enumerate(row for row in results if row["stage"] == "search"):
        yield f"trial {number}", row
    finals = [row for row in results if row["stage"] == "final"]
    finals.sort(key=lambda row: as_json(row, HYPERPARAMETERS))
    for number, row in enumerate(finals):
        yield f"final {number}", row
    for row in results:
        if row["stage"] == "retrain":
            yield f"{row['role']} seed {row['seed']}", row


def as_json(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The row's values under these names, sorted; numbers have all the digits that tell them apart."""
    return json.dumps({name: row[name] for name in names if name in row}, sort_keys=True)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 over name, type, shape and bytes of each, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- test logits -------------------------------------------------------------------------------------------------


def logits_of(tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """What the network says of raw images, on one thread. images: (N, 1, 28, 28) uint8 -> (N, 10) float32."""
    torch.set_num_threads(1)
    with torch.no_grad():
        return torch.cat([_forward(tensors, batch) for batch in images.split(LOGITS_BATCH_SIZE)])


def _forward(tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    values = (images.float() - tensors["image_mean"]) / tensors["image_std"]
    for block in ("blocks.0", "blocks.1"):
        values = functional.conv2d(values, tensors[f"{block}.0.weight"], tensors[f"{block}.0.bias"])
        mean, variance, weight, bias = (
            tensors[f"{block}.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        values = functional.batch_norm(values, mean, variance, weight, bias)
        values = functional.relu(functional.max_pool2d(values, 2))
    return functional.linear(values.flatten(1), tensors["head.weight"], tensors["head.bias"])


def mnist_test_images(data_dir: Path) -> Tensor:
    """MNIST's 10,000 test images. (10000, 1, 28, 28) uint8"""
    packed = (data_dir / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").read_bytes()
    pixels = np.frombuffer(gzip.decompress(packed), dtype=np.uint8, offset=16)
    return torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy())


def digits_test_images() -> Tensor:
    """The 360 of scikit-learn's digits that are kept for the test, made as large as MNIST's. (360, 1, 28, 28) uint8"""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = np.arange(len(digits.target))
    _, chosen = train_test_split(numbers, test_size=NUM_DIGITS_TEST, random_state=0, stratify=digits.target)
    pixels = (digits.images[np.sort(chosen)].astype(np.int64) * 255 // 16).astype(np.uint8)
    enlarged = np.pad(pixels.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(enlarged[:, np.newaxis])


# --- comparing ---------------------------------------------------------------------------------------------------


def _header() -> list[str]:
    """Comment lines: how the values were made, and on what."""
    command = shlex.join(["python", "-m", "tools.reference", *sys.argv[1:]])
    machine = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return [f"# {command}", f"# CPU: {machine}; torch {torch.__version__}, Python {platform.python_version()}"]


def _processor() -> str:
    """The CPU's model as Linux names it."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    names = {name.strip(): value.strip() for name, value in facts.items()}
    return "{model name} (family {cpu family}, model {model})".format_map(names)


def _report(file: Path, lines: Sequence[str], jobs: Sequence[str]) -> int:
    """Print which of the jobs' lines differ from the file's; returns the exit code."""
    text = file.read_text(encoding="utf-8").splitlines()
    comments = [line for line in text if line.startswith("#")]
    expected = _by_name([line for line in text if line.split(" ")[0] in jobs])
    found = _by_name(lines)
    differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    for name in differing:
        print(f"- {name}: {expected.get(name, 'no such line')}\n+ {name}: {found.get(name, 'no such line')}")
    if differing:
        print("\n".join(["expected values were made by", *comments, "and these by", *_header()]))
    print(f"{len(differing)} of {len({**expected, **found})} lines differ from {file}")
    return 1 if differing else 0


def _by_name(lines: Sequence[str]) -> dict[str, str]:
    """The value of each line by what stands before its first colon."""
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


if __name__ == "__main__":
    sys.exit(main())
