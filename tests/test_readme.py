"""The Python snippets of the documents run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mnist_ray import data, export_model
from tests.faults.made_run import make_finished_run

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = {
    f"{name} {number}": snippet
    for name in ("README.md", "docs/how-to/use-the-model-elsewhere.md")
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL))
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the snippets name: specs, exported models and a picture."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    _, run = make_finished_run(tmp_path_factory.mktemp("storage"))
    export_model(run, "onnx", folder / "model.onnx")
    export_model(run, "torch", folder / "model.pt2")
    Image.fromarray(data.load_test("digits", Path()).images[0, 0]).save(folder / "digit.png")
    return folder


def test_each_document_has_snippets() -> None:
    assert {name.split()[0] for name in SNIPPETS} == {"README.md", "docs/how-to/use-the-model-elsewhere.md"}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippet_runs(folder: Path, name: str) -> None:
    """A snippet that does not import this package does without it."""
    hidden = "" if "mnist_ray" in SNIPPETS[name] else "import sys; sys.modules['mnist_ray'] = None\n"
    (folder / "snippet.py").write_text(hidden + SNIPPETS[name], encoding="utf-8")
    ran = subprocess.run([sys.executable, "snippet.py"], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
