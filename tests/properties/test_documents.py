"""Documents name only what exists: files, modules, classes, make targets, commands, options, keys of a spec."""

import argparse
import ast
import importlib
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mnist_ray
from mnist_ray.cli.main import _parser
from mnist_ray.config import Hyperparameters, spec_keys

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/**/*.md")],
    key=lambda path: str(path.relative_to(ROOT)),
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)")
PATH = re.compile(r"(?<![\w./~$:<-])((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|sh|sbatch))(?![\w*<{(/])")
MODULE = re.compile(r"(?<![\w./@-])mnist_ray(?:\.[A-Za-z_]\w*)+")
PROGRAM = re.compile(r"\bpython3? (?:-\w+ )*?-m ([\w.]+)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
MNIST_RAY = re.compile(r"(?:^|[\s/(])mnist-ray +([a-z]+)\b(.*)")
MAKE = re.compile(r"(?:^|[;&|(] *)make((?: +(?:[a-z]\S*|[A-Z_]+=\S+))+)")
SET = re.compile(r"--set[ =]'?([a-z][\w.]*)=")
NAME = re.compile(r"\$?(_?[A-Z][a-z]+[A-Z]\w*|[A-Z]+_[A-Z_]+)(?:\.\w+)?(?:\(.*\))?")
SPEC_KEY = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)(?:[:=].*)?")

FOREIGN_NAMES = {"DistributedDataParallel", "OptunaSearch", "StartSync"}  # which we do not use
# Of a run (record/paths.py) and of this project, and not in git.
UNTRACKED = {
    ".venv", "blobs", "checkpoints", "leases", "logs", "model", "models", "ray", "record", "results", "results.md",
}  # fmt: skip


# --- what there is


@cache
def tracked() -> frozenset[str]:
    """Return every file of the repository and every folder, as paths from the root."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    files = [Path(line) for line in done.stdout.splitlines() if (ROOT / line).exists()]
    return frozenset(str(path) for file in files for path in (file, *file.parents))


@cache
def commands() -> dict[str, frozenset[str]]:
    """Return the options of each mnist-ray command."""
    (sub,) = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: frozenset(parser._option_string_actions) for name, parser in sub.choices.items()}


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def benchmark_parts() -> tuple[str, ...]:
    from mnist_ray.benchmarks.run import PARTS

    return PARTS


@cache
def spec_parts() -> frozenset[str]:
    """Return every key of a spec, and every part that holds keys."""
    keys = [*spec_keys(), *(f"search.space.{name}" for name in Hyperparameters.model_fields)]
    keys += [
        f"search.space.{name}.{end}" for name in Hyperparameters.model_fields for end in ("low", "high", "log", "off")
    ]
    keys += [f"search.space.{name}.choices" for name in Hyperparameters.model_fields]
    steps = [key.split(".") for key in keys]
    return frozenset(".".join(some[:depth]) for some in steps for depth in range(1, len(some) + 1))


@cache
def names() -> frozenset[str]:
    """Return every word of the code, this file's aside."""
    files = [ROOT / path for path in tracked() if path.endswith((".py", ".sh", ".yaml")) or path == "Makefile"]
    return frozenset(word for file in files if file != Path(__file__) for word in re.findall(r"\w+", file.read_text()))


@cache
def sources_of(program: str) -> str:
    """Return the source of a program that `python -m` runs; empty if there is none here."""
    path = ROOT / program.replace(".", "/")
    files = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else sorted(path.glob("*.py"))
    return "\n".join(file.read_text() for file in files)


# --- what a document names that there is not


def faults_of(text: str, folder: Path = ROOT) -> list[str]:
    """Return what a document gets wrong, one line each. folder: where its links begin."""
    return sorted({*_wrong_links(text, folder), *_wrong_names(text)})


def _wrong_links(text: str, folder: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", text)):
        if "://" not in target and not (folder / target).exists():
            yield f"link to {target}: no such file"


def _wrong_names(text: str) -> Iterator[str]:
    for language, block in FENCE.findall(text):
        if language == "python":
            yield from _wrong_imports(block)
        for line in block.replace("\\\n", " ").splitlines():
            yield from _wrong_in_code(re.sub(r"(^|\s)# .*", "", line))
    for span in SPAN.findall(FENCE.sub("", text)):
        yield from _wrong_in_code(" ".join(span.split()))


def _wrong_imports(block: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module == "mnist_ray":
            for name in node.names:
                if name.name not in mnist_ray.__all__:
                    yield f"from mnist_ray import {name.name}: no public name"


def _wrong_in_code(code: str) -> Iterator[str]:
    yield from _wrong_paths(code)
    yield from _wrong_modules(code)
    yield from _wrong_commands(code)
    for key in SET.findall(code):
        if key not in spec_parts():
            yield f"--set {key}: no key of a spec"
    name = NAME.fullmatch(code)
    if name and name[1] not in names() | FOREIGN_NAMES:
        yield f"{name[1]}: no such name in the code"
    key = SPEC_KEY.fullmatch(code)
    if key and key[1].split(".")[0] in spec_parts() and key[1] not in spec_parts() | {"report.html"}:
        yield f"{key[1]}: no key of a spec"


def _wrong_paths(code: str) -> Iterator[str]:
    for found in PATH.findall(code):
        name = found.rstrip("/.")
        first = name.split("/")[0]
        is_source = found.endswith((".py", ".md", ".sh", ".sbatch"))
        is_ours = is_source or (first not in UNTRACKED and (found.endswith("/") or first in tracked()))
        if is_ours and name not in UNTRACKED and not _exists(name):
            yield f"{found}: no such file"


def _exists(name: str) -> bool:
    """Report whether the repository has a path that ends so; documents leave the beginning out."""
    return any(path == name or path.endswith(f"/{name}") for path in tracked())


def _wrong_modules(code: str) -> Iterator[str]:
    for name in MODULE.findall(code):
        if not _imports(name):
            yield f"{name}: does not import"
    for program in PROGRAM.findall(code):
        is_ours = program.split(".")[0] in tracked()
        if is_ours and not sources_of(program):
            yield f"python -m {program}: no such program"
        for option in OPTION.findall(code) if is_ours and program != "mnist_ray.cli" else ():
            if f'"{option}"' not in sources_of(program):
                yield f"python -m {program} {option}: no such option"


def _imports(name: str) -> bool:
    try:
        if importlib.util.find_spec(name):
            return True
    except ModuleNotFoundError:  # the part before the last dot is a module, not a package
        pass
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return False


def _wrong_commands(code: str) -> Iterator[str]:
    for arguments in MAKE.findall(code):
        for target in arguments.split():
            if "=" not in target and target not in make_targets():
                yield f"make {target}: no such target"
    for command, rest in MNIST_RAY.findall(code):
        if command not in commands():
            yield f"mnist-ray {command}: no such command"
            continue
        for option in OPTION.findall(rest):
            if option not in commands()[command]:
                yield f"mnist-ray {command} {option}: no such option"
        for part in re.findall(r"^ ([a-z]+)", rest) if command == "benchmark" else ():
            if part not in benchmark_parts():
                yield f"mnist-ray benchmark {part}: no such part"
    if re.fullmatch(OPTION, code.split(" ")[0]):
        known = {option for options in commands().values() for option in options} | set(
            _parser()._option_string_actions
        )
        if code.split(" ")[0] not in known:
            yield f"{code.split(' ')[0]}: no command has this option"


# --- tests


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_what_exists(path: Path) -> None:
    assert faults_of(path.read_text(), path.parent) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("see [why](decisions/none.md)", "link to decisions/none.md: no such file"),
        ("`mnist_ray/learning/` has the loop", "mnist_ray/learning/: no such file"),
        ("`training/looop.py`", "training/looop.py: no such file"),
        ("`test_nothing.py`", "test_nothing.py: no such file"),
        ("`jobs/none.yaml`", "jobs/none.yaml: no such file"),
        ("`mnist_ray.running.job`", "mnist_ray.running.job: does not import"),
        ("`mnist_ray.config.load_specs`", "mnist_ray.config.load_specs: does not import"),
        ("`RunWritter.publish`", "RunWritter: no such name in the code"),
        ("`RECORD_FROMAT`", "RECORD_FROMAT: no such name in the code"),
        ("`make tests`", "make tests: no such target"),
        ("```\nmake test-fast   # quick\n```", "make test-fast: no such target"),
        ("`mnist-ray trane best.yaml`", "mnist-ray trane: no such command"),
        ("```\n.venv/bin/mnist-ray run SPEC --locl\n```", "mnist-ray run --locl: no such option"),
        ("`mnist-ray benchmark workers\n--runds 7`", "mnist-ray benchmark --runds: no such option"),
        ("`mnist-ray benchmark stepps`", "mnist-ray benchmark stepps: no such part"),
        ("`--data-dri`", "--data-dri: no command has this option"),
        ("`--set search.trials=3`", "--set search.trials: no key of a spec"),
        ("`mnist-ray run SPEC --set search.space.momentum.low=0`", "--set search.space.momentum.low: no key of a spec"),
        ("`retrain.wrokers: [2, 8]`", "retrain.wrokers: no key of a spec"),
        ("`python -m experiments.none`", "python -m experiments.none: no such program"),
        ("`python -m experiments.accuracy --sedes 5`", "python -m experiments.accuracy --sedes: no such option"),
        ("```python\nfrom mnist_ray import Site\n```", "from mnist_ray import Site: no public name"),
    ],
)
def test_wrong_names_are_noticed(text: str, fault: str) -> None:
    assert faults_of(text) == [fault]


def test_right_names_are_accepted() -> None:
    text = """
    [link](README.md), `training/loop.py`, `mnist_ray/record/`, `results/<name>/`, `mnist_ray.config.load_spec`,
    `make run SPEC=jobs/mnist.yaml`, `mnist-ray run jobs/mnist.yaml --name x --set retrain.workers=[2,8]`,
    `RunWriter.publish(event)`, `final: null`, `search.max_concurrent_trials: 1`, `~/.ray/auth_token`, `results.md`,
    `python -m experiments.accuracy --seeds 5`
    """
    assert faults_of(text) == []
