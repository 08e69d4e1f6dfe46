"""Distributed training and tuning of a small image classifier. Importing does nothing; the stages are functions.

from mnist_ray import load_spec, run_job
run = run_job(load_spec("jobs/quickstart.yaml"))
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "JobSpec": "mnist_ray.config",
    "SpecError": "mnist_ray.errors",
    "load_spec": "mnist_ray.config",
    "parse_spec": "mnist_ray.config",
    "DataError": "mnist_ray.errors",
    "RunDir": "mnist_ray.record.rundir",
    "read_results": "mnist_ray.record.tables",
    "Site": "mnist_ray.pipeline.job",
    "run_job": "mnist_ray.pipeline.job",
    "search_job": "mnist_ray.pipeline.job",
    "train_job": "mnist_ray.pipeline.job",
    "write_report": "mnist_ray.report.write",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mnist_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
