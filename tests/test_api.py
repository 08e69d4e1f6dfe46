"""The package shows what it offers before anything heavy is imported."""

import subprocess
import sys

import mnist_ray


def test_dir_shows_the_api() -> None:
    assert set(mnist_ray.__all__) <= set(dir(mnist_ray))


def test_dir_imports_nothing_heavy() -> None:
    code = "import sys, mnist_ray; dir(mnist_ray); assert not {'torch', 'ray', 'pandas', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
