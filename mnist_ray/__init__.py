"""Distributed training and tuning of a small image classifier. Importing does nothing; the stages are functions.

from mnist_ray import load_spec, run_job
run = run_job(load_spec("jobs/quickstart.yaml"))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_ray.api import run_job, search_job, train_job
    from mnist_ray.callbacks import Callback
    from mnist_ray.config import JobSpec, load_spec, parse_spec
    from mnist_ray.errors import DataError, SpecError
    from mnist_ray.pipeline.export import export_model
    from mnist_ray.pipeline.local_backend import LocalBackend
    from mnist_ray.ray_backend.backend import RayBackend
    from mnist_ray.record.rundir import RunDir
    from mnist_ray.record.tables import read_results
    from mnist_ray.report.write import write_report
    from mnist_ray.run import Run

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "DataError",
    "JobSpec",
    "LocalBackend",
    "RayBackend",
    "Run",
    "RunDir",
    "SpecError",
    "export_model",
    "load_spec",
    "parse_spec",
    "read_results",
    "run_job",
    "search_job",
    "train_job",
    "write_report",
]

_HOMES = {
    "Callback": "mnist_ray.callbacks",
    "DataError": "mnist_ray.errors",
    "JobSpec": "mnist_ray.config",
    "LocalBackend": "mnist_ray.pipeline.local_backend",
    "RayBackend": "mnist_ray.ray_backend.backend",
    "Run": "mnist_ray.run",
    "RunDir": "mnist_ray.record.rundir",
    "SpecError": "mnist_ray.errors",
    "export_model": "mnist_ray.pipeline.export",
    "load_spec": "mnist_ray.config",
    "parse_spec": "mnist_ray.config",
    "read_results": "mnist_ray.record.tables",
    "run_job": "mnist_ray.api",
    "search_job": "mnist_ray.api",
    "train_job": "mnist_ray.api",
    "write_report": "mnist_ray.report.write",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mnist_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
