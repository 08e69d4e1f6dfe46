"""Nothing that lies in a run's folder is ever executed: planted payloads stay bytes."""

import ast
import contextlib
import io
import os
import pickle
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mnist_ray.config import load_spec
from mnist_ray.pipeline.prediction import trained_model
from mnist_ray.record.tables import read_results
from mnist_ray.training.checkpoint import model_from_bytes
from tests.faults.conftest import MadeRun
from tests.faults.made_run import LEFTOVERS, OPEN_TRIAL, RETRAINING, checkpoints_of, record_files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# --- payloads


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._marker),)


def _as_torch(marker: Path) -> bytes:
    content = io.BytesIO()
    torch.save({"model": torch.zeros(1), "payload": Payload(marker)}, content)
    return content.getvalue()


def _as_numpy(marker: Path) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return content.getvalue()


PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda marker: pickle.dumps(Payload(marker)),
    "text pickle": lambda marker: pickle.dumps(Payload(marker), protocol=0),
    "torch": _as_torch,
    "numpy": _as_numpy,
    "yaml": lambda marker: f"name: !!python/object/apply:os.mkdir ['{marker}']\n".encode(),
    "python": lambda marker: f"import os\nos.mkdir({str(marker)!r})\n".encode(),
}

RUN: dict[str, Callable[[bytes], Any]] = {
    "pickle": pickle.loads,
    "text pickle": pickle.loads,
    "torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
    "numpy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
    "yaml": lambda content: yaml.load(content, Loader=yaml.UnsafeLoader),
    "python": lambda content: exec(content),
}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_payloads_run_where_allowed(tmp_path: Path, kind: str) -> None:
    """Or the tests below would show nothing."""
    RUN[kind](PAYLOADS[kind](tmp_path / "marker"))
    assert (tmp_path / "marker").is_dir()


def kinds_for(path: Path) -> list[str]:
    """Return the payloads that a careless reader of such a file might execute."""
    special = {".yaml": ["yaml"], ".npy": ["numpy"], ".py": ["python"], ".safetensors": ["torch", "pickle"]}
    return special.get(path.suffix, ["torch" if path.suffix == ".pt" else "text pickle"])


# --- using a run that holds them


def uses(made: MadeRun) -> dict[str, Callable[[], object]]:
    """Return everything that reads from a run's folder, as commands and as functions."""
    run, spec = made.run, made.spec
    paths = run.paths
    config = spec.training_config(spec.baseline, spec.tested_epochs, 0)
    functions: dict[str, Callable[[], object]] = {
        "read the tables": lambda: (read_results(paths.results_csv), read_results(paths.results_parquet)),
        "train the best again": lambda: load_spec(paths.selected_spec),
        "the spec that ran": lambda: load_spec(paths.spec),
        "go on from checkpoints": lambda: [
            checkpoints_of(run, training_id, config).latest() for training_id in (OPEN_TRIAL, RETRAINING)
        ],
        "a model on record": lambda: trained_model(run, RETRAINING),
        "its copy": lambda: model_from_bytes(paths.model(RETRAINING).read_bytes()),
    }
    commands = {name: partial(made.do, name) for name in made.commands()}  # the last one makes the tables again
    return functions | commands


def use_all(made: MadeRun) -> None:
    """Use the run in every way, whatever comes of that: other tests are about the messages."""
    for use in uses(made).values():
        with contextlib.suppress(Exception):
            use()


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "a payload ran"


def test_every_use_works(finished: MadeRun) -> None:
    """Or the next tests would use nothing."""
    for name, use in uses(finished).items():
        assert use() == 0 or name not in finished.commands(), name


def test_payloads_on_record_stay_bytes(finished: MadeRun, marker: Path) -> None:
    planted = record_files(finished.run)
    assert len(planted) > 15
    for path, kind in zip(planted, cycle(["text pickle", "torch", "numpy"]), strict=False):
        whole = path.read_bytes()
        path.write_bytes(PAYLOADS[kind](marker))
        use_all(finished)
        assert not marker.exists(), f"{kind} in {path}"
        path.write_bytes(whole)


@pytest.mark.parametrize("index", [0, -1])
def test_payloads_elsewhere_change_nothing(finished: MadeRun, marker: Path, index: int) -> None:
    """In place of every file, and of those that may lie there; the tables are made from the record again."""
    run, paths = finished.run, finished.run.paths
    before = read_results(paths.results_csv)
    planted = {path for path in run.path.rglob("*") if path.is_file()} - set(record_files(run))
    assert len(planted) > 10
    for path in planted | {run.path / name for name in LEFTOVERS}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PAYLOADS[kinds_for(path)[index]](marker))
    use_all(finished)
    assert not marker.exists()
    assert read_results(paths.results_csv).equals(before)
    assert read_results(paths.results_parquet).equals(before)


# --- what the code calls


LOADERS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load"),
    *("dill.loads", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "pandas.read_pickle"),
    *("torch.jit.load", "torch.package.PackageImporter", "torch.hub.load", "runpy.run_path"),
    *("yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "ray.tune.Tuner.restore"),
    *(f"torch.distributed.{name}" for name in ("all_gather_object", "gather_object", "recv_object_list")),
    *(f"torch.distributed.{name}" for name in ("broadcast_object_list", "scatter_object_list")),
    *("ray.train.torch.TorchTrainer.restore", "ray.cloudpickle.load", "ray.cloudpickle.loads"),
}
CODE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "ray.cloudpickle", "_pickle", "jsonpickle"}


def runs_code(source: str) -> list[str]:
    """Return the calls and imports in a program that could execute code from a file."""
    tree = ast.parse(source)
    names = _imported(tree)
    found = [name for name in names.values() if name in CODE_MODULES or name.rpartition(".")[0] in CODE_MODULES]
    safe_loaders = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _is_safe(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += _dangers(_full_name(node.func, names), node, safe_loaders)
    return found


def _dangers(name: str, call: ast.Call, safe_loaders: set[str]) -> list[str]:
    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
    is_dangerous = (
        name in LOADERS
        or (name == "torch.load" and options.get("weights_only") != "True")
        or (name == "numpy.load" and options.get("allow_pickle", "False") != "False")
        or (name == "yaml.load" and options.get("Loader") not in {"yaml.SafeLoader", "yaml.CSafeLoader", *safe_loaders})
        or (name.startswith("subprocess.") and options.get("shell", "False") != "False")
        or (name.endswith(".restore") and name != "self.restore")
    )
    return [f"{name} in line {call.lineno}"] if is_dangerous else []


def _imported(tree: ast.AST) -> dict[str, str]:
    """Return the local names of imports with their full names."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _full_name(function: ast.expr, names: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(function).partition(".")
    return names.get(first, first) + dot + rest


def _is_safe(node: ast.ClassDef) -> bool:
    return [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]


PROGRAMS = [path for folder in ("mnist_ray", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_program_loads_no_code(path: Path) -> None:
    assert runs_code(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as cp",
        "from ray import cloudpickle",
        "import joblib\njoblib.load(path)",
        "from joblib import load\nload(path)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=choice)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text, Loader=_SpecLoader)",
        "import yaml\nclass L(yaml.UnsafeLoader): pass\nyaml.load(text, Loader=L)",
        "import yaml as y\ny.unsafe_load(text)",
        "import pandas as pd\npd.read_pickle(path)",
        "eval(text)",
        "exec(text)",
        "def f():\n    from ray import tune\n    tune.Tuner.restore(path)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import torch.distributed as dist\ndist.broadcast_object_list(held)",
    ],
)
def test_dangerous_calls_are_found(source: str) -> None:
    assert runs_code(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load(text, Loader=L)",
        "import yaml\nyaml.safe_load(text)",
        "from joblib import cpu_count\ncpu_count()",
        "from safetensors.torch import load\nload(content)",
        "import re\nre.compile(text)",
    ],
)
def test_safe_calls_are_allowed(source: str) -> None:
    assert runs_code(source) == []
