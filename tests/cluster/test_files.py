"""The paths, options and versions that the files of `cluster/` name exist."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

import mnist_ray
from mnist_ray.cli.main import _parser
from tests.ray_head import BIN, REPOSITORY

CLUSTER = REPOSITORY / "cluster"
DOCKERFILE = (CLUSTER / "image" / "Dockerfile").read_text()
SBATCH = (CLUSTER / "slurm" / "job.sbatch").read_text()


@pytest.mark.parametrize("script", [*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")], ids=lambda path: path.name)
def test_scripts_stop_at_errors(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=False).returncode == 0
    if script.name != "settings.sh":  # which is sourced
        assert "\nset -euo pipefail\n" in script.read_text()
        assert script.suffix == ".sbatch" or script.stat().st_mode & 0o111


def test_image_copies_existing_files_only() -> None:
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    names = {name for sources in copied for name in sources}
    assert all((REPOSITORY / name).exists() for name in names)
    allowed = (CLUSTER / "image" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == names
    assert "*" in allowed


def test_image_installs_by_hash_without_root() -> None:
    assert "--require-hashes" in DOCKERFILE
    instructions = [line.split()[0] for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert instructions.index("USER") > max(i for i, name in enumerate(instructions) if name in ("RUN", "COPY"))
    assert re.search(r"^USER ray$", DOCKERFILE, re.MULTILINE)
    assert "http" not in DOCKERFILE


def test_image_has_the_project_versions() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lowest = re.match(r">=([\d.]+)", project["requires-python"])
    assert lowest is not None
    assert f"FROM python:{lowest[1]}-slim" in DOCKERFILE
    assert f"mnist-ray:{mnist_ray.__version__} ." in DOCKERFILE


def test_slurm_options_exist() -> None:
    """The options of the driver and of Ray; tests/cluster/test_slurm.py runs the file on a real Slurm."""
    joined = SBATCH.replace("\\\n", " ")
    (line,) = [line.strip() for line in joined.splitlines() if "jobs/run.py" in line]
    words = shlex.split(line.partition("run python ")[2].partition(" ||")[0])
    assert (REPOSITORY / words[0]).is_file()
    options = [word for word in words if word.startswith("--")]
    arguments = ["run", "jobs/mnist.yaml", *(part for option in options for part in (option, "x"))]
    assert _parser().parse_args(arguments).storage == "x"
    (line,) = [line for line in SBATCH.splitlines() if line.startswith("options=(")]
    known = subprocess.run([BIN / "ray", "start", "--help"], capture_output=True, text=True, check=True).stdout
    used = [
        word.partition("=")[0]
        for word in shlex.split(line.removeprefix("options=(").removesuffix(")"))
        if word.startswith("--")
    ]
    assert used and all(f"{option} " in known for option in used)


def test_slurm_requeues_and_signals_the_end() -> None:
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SBATCH, re.MULTILINE))
    assert "requeue" in directives and directives["open-mode"] == "append"
    assert "exclusive" in directives, "the ports are fixed"
    assert re.fullmatch(r"B:USR1@\d+", directives["signal"])
    assert "scontrol requeue" in SBATCH


def test_slurm_sets_no_variable_of_slurm() -> None:
    """ENVIRONMENT is Slurm's own, so the user's value never came through."""
    taken = set(re.findall(r"\$\{(\w+):-", SBATCH))
    assert {name for name in taken if not name.startswith(("MNIST_RAY_", "SLURM_"))} == set()
