"""The benchmark of a GPU, rehearsed on the CPU: every line runs, in processes as on a GPU."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.benchmarks.gpu.__main__ import BEGIN, END
from mnist_ray.benchmarks.gpu.images import made_up, read_mnist
from mnist_ray.benchmarks.gpu.parts import PARTS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # half a minute, unless the machine has other work

WITHOUT_RAY = [part for part in PARTS if part != "ray"]
# What a machine with torch may lack: none of these can be imported.
LACKING = ["joblib", "optuna", "pandas", "pyarrow", "ray", "sklearn", "tabulate", "torchvision"]
WITHOUT = f"import sys; sys.modules |= dict.fromkeys({LACKING})"


def rehearse(*arguments: object, before: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own. before: lines that change it."""
    program = f"{before}\nimport sys\nfrom mnist_ray.benchmarks.gpu.__main__ import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=580,
    )


def lines_of(done: "subprocess.CompletedProcess[str]") -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def write_mnist(folder: Path, num_images: int) -> None:
    """Write made-up images as MNIST's training files, one of them packed, at different depths."""
    images = made_up(num_images)
    (folder / "MNIST" / "raw").mkdir(parents=True)
    pixels = struct.pack(">4I", 0x803, num_images, 28, 28) + images.images.tobytes()
    (folder / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
    labels = struct.pack(">2I", 0x801, num_images) + images.labels.astype(np.uint8).tobytes()
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)


def test_every_part_but_rays_needs_no_more_than_trainings_do(tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    write_mnist(tmp_path / "data", 120)
    options = ("--device", "cpu", "--data-dir", tmp_path / "data", "--out", out, "--page", page)
    done = rehearse(*WITHOUT_RAY, *options, before=WITHOUT)
    lines = lines_of(done)
    assert done.returncode == 0, done.stderr
    assert list(dict.fromkeys(line["part"] for line in lines)) == WITHOUT_RAY
    assert all(line["rehearsal"] and line["ok"] is not False for line in lines)
    assert [line["ok"] for line in lines if line["check"] == "the whole part"] == [True] * len(WITHOUT_RAY)
    assert [section["title"] for section in json.loads(out.read_text())["sections"]] == [
        PARTS[part].title for part in WITHOUT_RAY
    ]
    assert page.read_text().count("On MNIST. A rehearsal on a CPU") == len(WITHOUT_RAY)


def test_rays_part_runs_a_job() -> None:
    done = rehearse("ray", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert [line["check"] for line in lines_of(done)] == ["trials that share the GPU", "retraining", "the whole part"]


def test_without_ray_its_part_is_not_run() -> None:
    before = "from mnist_ray.benchmarks.gpu import ray_jobs\nray_jobs.find_spec = lambda name: None"
    done = rehearse("ray", "--device", "cpu", before=before)
    assert done.returncode == 0, done.stderr
    assert lines_of(done)[0]["not run"] == "no Ray"


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (
            "bench.ALLOWED_ACCURACY = -1.0",
            ["going on from a checkpoint", "going on from a GPU's checkpoint on the CPU"],
        ),
        ("parts.PART_LIMIT_S = 0.0", ["the whole part"]),
        ("resume.NUM_EPOCHS = 0", ["the whole part"]),  # which no training can have
        ("resume.Checkpoints = lambda *a, **k: resume.torch._C._abort()", ["the whole part"]),
    ],
)
def test_failed_check_ends_the_command_with_1(change: str, failed: list[str]) -> None:
    before = f"from mnist_ray.benchmarks.gpu import bench, parts, resume\n{change}"
    done = rehearse("resume", "--device", "cpu", before=before)
    assert done.returncode == 1, done.stderr
    assert [line["check"] for line in lines_of(done) if line["ok"] is False] == failed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["steps"], "torch finds no CUDA device: run on a machine with a GPU, or pass --device cpu"),
        (["step", "--device", "cpu"], "PART step: use some of steps, ranks, resume, together, speed, ray"),
        (["steps", "--device", "cpu", "--data-dir", "/nowhere"], "holds no file train-images-idx3-ubyte"),
    ],
)
def test_what_cannot_run_is_said_in_a_line(arguments: list[str], said: str) -> None:
    done = rehearse(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_images_are_read_at_any_depth(tmp_path: Path) -> None:
    write_mnist(tmp_path, 20)
    read, written = read_mnist(tmp_path), made_up(20)
    assert (read.images == written.images).all() and (read.labels == written.labels).all()
