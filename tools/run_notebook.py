"""Run a notebook and store it with its outputs. python -m tools.run_notebook [NOTEBOOK]

It runs in an empty folder, whose path is taken out of the outputs. Needs `mnist-ray[notebook]` and nbclient.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "mnist_classifier.ipynb"


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=900, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    path.write_text(nbformat.writes(notebook).replace(f"{folder}/", "") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
