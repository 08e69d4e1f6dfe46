"""Ray on this machine with its defaults, for a program of the documentation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from mnist_ray.ray_backend.compat import folder_options, loopback_only


@contextmanager
def ray_started(num_cpus: int, folder: Path) -> Iterator[None]:
    """Start Ray for a block. folder: for its temporary files.

    Ray has its defaults, but for the place of these files, and for the loopback, which alone it listens on.
    """
    options: dict[str, Any] = {"num_cpus": num_cpus, **folder_options(folder)}
    with loopback_only():
        ray.init(address="local", **options)
    try:
        yield
    finally:
        ray.shutdown()
