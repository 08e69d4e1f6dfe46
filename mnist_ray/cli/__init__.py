"""The command line."""

from mnist_ray.cli.main import main

__all__ = ["main"]
