"""The notebook runs from the first cell to the last, and is stored with small outputs."""

from pathlib import Path
from tempfile import gettempdir

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "mnist_classifier.ipynb"
MOST_BYTES = 400_000


def test_notebook_is_stored_with_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert not [
        place for place in (NOTEBOOK.parents[1], Path.home(), gettempdir()) if str(place) in NOTEBOOK.read_text()
    ]


@pytest.mark.timeout(600)
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = "".join(output.get("text", "") for output in outputs)
    assert "test images are wrong" in texts and (tmp_path / "results" / "notebook" / "report.html").exists()
    assert not [output for output in outputs if output.output_type == "error"]
    assert "Traceback" not in texts
