"""The imports of a new process on a cluster of this machine, before the process is given work.

Ray imports this module in each new process, because RAY_preload_python_modules names it (compat.py). What the process
will do is read from its environment.
"""

import gc
import os
from collections.abc import Mapping, Sequence
from importlib import import_module

from mnist_ray.ray_backend.compat import IN_CONTROLLERS, IN_TRIALS

IN_RANKS = "MNIST_RAY_RANK"

MODULES: Mapping[str, Sequence[str]] = {
    IN_RANKS: ("mnist_ray.ray_backend.train.worker",),
    IN_TRIALS: ("mnist_ray.ray_backend.tune.trial", "mnist_ray.pipeline.execution"),
    IN_CONTROLLERS: ("ray.train.v2._internal.execution.controller", "mnist_ray.ray_backend.train.callbacks"),
}


def modules_for(environment: Mapping[str, str]) -> Sequence[str]:
    """Return what a process with this environment imports sooner or later. Ranks have the controllers' variable too."""
    return next((modules for variable, modules in MODULES.items() if variable in environment), ())


def preload(modules: Sequence[str]) -> None:
    """Import modules by name, without the searches for garbage that take a tenth of the time."""
    gc.disable()
    try:
        for name in modules:
            import_module(name)
    finally:
        gc.enable()


preload(modules_for(os.environ))
