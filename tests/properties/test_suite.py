"""Promises of the suite: no skip goes unnoticed, and light tests start without heavy imports."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SKIPPING = {
    "marker": "@pytest.mark.skip(reason='wants a package')\ndef test_it(): pass",
    "condition": "@pytest.mark.skipif(True, reason='wants a package')\ndef test_it(): pass",
    "call": "def test_it(): pytest.skip('wants a package')",
    "fixture": "@pytest.fixture\ndef part(): pytest.skip('wants a package')\ndef test_it(part): pass",
    "file": "pytest.skip('wants a package', allow_module_level=True)",
}


def run_pytest(folder: Path, tests: dict[str, str], no_skips: str) -> "subprocess.CompletedProcess[str]":
    (folder / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, test in tests.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{test}\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider", "--continue-on-collection-errors"],
        cwd=folder,
        env=os.environ
        | {
            "MNIST_RAY_NO_SKIPS": no_skips,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "COLUMNS": "200",
            "PYTHONPATH": str(ROOT),  # for the plugin that the conftest names
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_forbidden_skip_fails_with_its_reason(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPPING, no_skips="1")
    assert done.returncode != 0
    assert "skipped" not in done.stdout.splitlines()[-1]
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    for how in SKIPPING:
        assert any(f"test_{how}.py" in line and "wants a package" in line for line in failures), (how, done.stdout)


def test_allowed_skips_are_named(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPPING, no_skips="")
    assert done.returncode == 0
    assert done.stdout.count("wants a package") == len(SKIPPING)
    assert f"{len(SKIPPING)} skipped" in done.stdout


def test_expected_failures_are_no_skips(tmp_path: Path) -> None:
    test = "@pytest.mark.xfail(reason='known')\ndef test_it(): assert False"
    assert "1 xfailed" in run_pytest(tmp_path, {"known": test}, no_skips="1").stdout


def test_torch_computes_on_one_thread() -> None:
    import torch

    assert torch.get_num_threads() == 1


def test_spec_and_record_import_lightly() -> None:
    """Reading a spec or a record takes none of the seconds that importing torch and Ray takes."""
    program = (
        "import sys, mnist_ray, mnist_ray.config, mnist_ray.storage.files\n"
        "import mnist_ray.record.rundir, mnist_ray.record.tables\n"
        "print([name for name in ('torch', 'ray', 'torchvision', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
