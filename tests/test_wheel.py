"""The built wheel works by itself, from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from mnist_ray import load_spec
from mnist_ray.config import packaged_specs

REPOSITORY = Path(__file__).resolve().parents[1]
BUILT_FROM = ("mnist_ray", "jobs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, and install the wheel alone into a folder."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in BUILT_FROM:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return folder


def command(installed: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    code = "import sys, mnist_ray; from mnist_ray.cli.main import main; print(mnist_ray.__file__); sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_wheel_runs_a_packaged_spec(installed: Path, tmp_path: Path) -> None:
    small = (
        *("search.num_trials=2", "search.num_epochs=1", "search.early_stopping=null"),
        *("final=null", "retrain.num_epochs=1"),
    )
    changes = [part for change in small for part in ("--set", change)]
    ran = command(installed, tmp_path, "run", "quickstart", "--local", "--quiet", *changes)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(installed))
    assert ran.stderr == ""
    assert (tmp_path / "results" / "quickstart" / "report.html").is_file()


def test_packaged_specs_are_those_of_jobs(installed: Path, tmp_path: Path) -> None:
    files = [file.stem for file in (REPOSITORY / "jobs").glob("*.yaml") if file.stem != "runtime-env"]
    assert packaged_specs() == sorted(files)
    for name in packaged_specs():
        printed = command(installed, tmp_path, "specs", name).stdout.partition("\n")[2]
        assert printed == (REPOSITORY / "jobs" / f"{name}.yaml").read_text()
        assert load_spec(name) == load_spec(REPOSITORY / "jobs" / f"{name}.yaml")


def test_workflow_runs_the_checks() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_unknown_spec_is_named(installed: Path, tmp_path: Path) -> None:
    failed = command(installed, tmp_path, "plan", "quikstart")
    assert failed.returncode == 2
    assert "did you mean quickstart?" in failed.stderr


def test_schema_accepts_the_packaged_specs(installed: Path, tmp_path: Path) -> None:
    schema = json.loads(command(installed, tmp_path, "specs", "--schema").stdout.partition("\n")[2])
    for name in packaged_specs():
        jsonschema.validate(load_spec(name).model_dump(mode="json"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"data": {"name": "digits"}, "serch": {}}, schema)
