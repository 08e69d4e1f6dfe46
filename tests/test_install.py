"""What is pinned, what is installed, and that torch and torchvision stay a pair."""

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Collection
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import torch
import torchvision
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mnist_ray import SpecError, parse_spec

ROOT = Path(__file__).parent.parent
REQUIREMENTS_FILES = ["requirements.txt", "requirements-dev.txt", "requirements-clouds.txt", "requirements-uv.txt"]
SHA256_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries_of(file_name: str) -> list[str]:
    """The file's entries, one logical line each (name==version ; marker --hash=...)."""
    text = (ROOT / file_name).read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def pins_of(file_name: str) -> list[Requirement]:
    return [Requirement(entry.partition(" --hash=")[0]) for entry in entries_of(file_name)]


def versions_here(file_name: str) -> dict[str, str]:
    """Name -> the version that the file pins for this machine and this Python."""
    here = [pin for pin in pins_of(file_name) if pin.marker is None or pin.marker.evaluate()]
    versions: dict[str, str] = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}
    assert len(versions) == len(here), "one package is pinned twice for the same Python"
    return versions


EXTRAS_OF_CLUSTERS = ("s3", "gcs", "onnx")  # those that requirements.txt holds


def declared_dependencies(extras: Collection[str] | None = None) -> list[Requirement]:
    """Those of the project and of its extras. extras: of these alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    optional = [known[extra] for extra in (known if extras is None else extras)]
    return [Requirement(dependency) for dependency in [*project["dependencies"], *itertools.chain(*optional)]]


def imported_modules() -> set[str]:
    """The modules of other projects that the package imports, by their first names."""
    found = set()
    for file in (ROOT / "mnist_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.partition(".")[0] for name in names}
    return found - sys.stdlib_module_names - {"mnist_ray"}


OF_OTHERS = {"pydantic-core", "tensorboardx", "ipython"}  # of pydantic, ray[tune] and, in a notebook, ipykernel


def test_every_import_is_declared() -> None:
    declared = {canonicalize_name(each.name) for each in declared_dependencies()} | OF_OTHERS
    distributions = packages_distributions()
    undeclared = {
        module: distributions[module]
        for module in imported_modules()
        if not declared & {canonicalize_name(each) for each in distributions[module]}
    }
    assert undeclared == {}


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_ray.config.find_spec", lambda package: None)
    with pytest.raises(SpecError, match=r"needs the package s3fs, .* pip install 'mnist-ray\[s3\]'"):
        parse_spec({"name": "one", "data": {"name": "digits"}, "storage": "s3://bucket/runs"})


def test_torch_and_torchvision_are_one_build() -> None:
    assert torch.__version__.partition("+")[2] == torchvision.__version__.partition("+")[2]
    # major * 1000 + minor * 10, or -1 for a build without CUDA
    compiled_for = torch.ops.torchvision._cuda_version()
    if torch.version.cuda is None:
        assert compiled_for == -1
    else:
        major, minor = map(int, torch.version.cuda.split("."))
        assert compiled_for == major * 1000 + minor * 10


def test_torchvision_finds_its_operators() -> None:
    """With a torch of another build this raises "operator torchvision::nms does not exist"."""
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
    kept = torchvision.ops.nms(boxes, scores=torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    assert kept.tolist() == [0, 2]


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_the_pair_is_pinned_exactly(name: str) -> None:
    [declared] = [dependency for dependency in declared_dependencies() if dependency.name == name]
    [pin] = [pin for pin in pins_of("requirements.txt") if pin.name == name]
    assert declared.specifier == pin.specifier
    assert pin.marker is None


def test_pins_lie_in_declared_ranges() -> None:
    for file_name, extras in {"requirements.txt": EXTRAS_OF_CLUSTERS, "requirements-dev.txt": None}.items():
        pinned = versions_here(file_name)
        for dependency in declared_dependencies(extras):
            assert dependency.specifier.contains(pinned[canonicalize_name(dependency.name)]), dependency


def test_installed_is_what_is_pinned() -> None:
    pinned = versions_here("requirements-dev.txt")
    installed = {name: version(name) for name in pinned}
    assert installed == pinned


def test_tests_run_on_users_versions() -> None:
    for_users, for_tests = (versions_here(name).items() for name in ("requirements.txt", "requirements-dev.txt"))
    assert for_users < for_tests


@pytest.mark.parametrize("file_name", REQUIREMENTS_FILES)
def test_requirements_are_hashed_without_addresses(file_name: str) -> None:
    entries = entries_of(file_name)
    assert entries
    for entry in entries:
        requirement, *hashes = entry.split(" --hash=")
        [specifier] = Requirement(requirement).specifier
        assert specifier.operator == "=="
        assert hashes, entry
        # Nothing but hashes is left: no address, no index option.
        assert all(SHA256_HASH.fullmatch(f"--hash={text.strip()}") for text in hashes), entry
        assert "://" not in requirement
        assert not requirement.startswith("-")
