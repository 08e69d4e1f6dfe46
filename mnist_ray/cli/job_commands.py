"""The commands that work on a job spec here: run, search, train, plan."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.cli.arguments import add_command, add_overrides, add_storage, overrides_of
from mnist_ray.cli.run_commands import print_report
from mnist_ray.errors import SpecError

if TYPE_CHECKING:
    from mnist_ray.config import JobSpec
    from mnist_ray.pipeline.backend import Backend


def add_job_commands(commands: Any) -> None:
    """Add run, search, train and plan to the parser."""
    for name, text in (
        ("run", "search, select, retrain, test, write the tables and the report"),
        ("search", "only the search and the selection; `run` goes on from there"),
        ("train", "train and test the spec's `recipe` with the parts of `training`, without a search"),
    ):
        job = add_command(commands, name, _do_job, text)
        job.set_defaults(job=name)
        job.add_argument("spec", type=Path, help="a job spec, such as jobs/quickstart.yaml")
        job.add_argument(
            "--local", action="store_true", help="without Ray: one training after another, in this process"
        )
        job.add_argument("-q", "--quiet", action="store_true", help="show warnings and the result alone")
        _add_job_options(job)
    plan = add_command(commands, "plan", _plan, "what a job needs, and what is in its way; nothing is started")
    plan.add_argument("spec", type=Path, help="a job spec, such as jobs/mnist.yaml")
    plan.add_argument("--price-per-hour", type=float, help="of the whole cluster, in any currency")
    _add_job_options(plan)


def _add_job_options(job: argparse.ArgumentParser) -> None:
    add_overrides(job)
    job.add_argument("--data-dir", help="where the data sets lie (default: $MNIST_RAY_DATA, then ~/.cache/mnist_ray)")
    job.add_argument("--address", help="of a Ray cluster (default: $RAY_ADDRESS, then this machine alone)")
    job.add_argument("--ray-dir", type=Path, help="where a cluster of this machine alone keeps its temporary files")
    job.add_argument("-v", "--verbose", action="store_true", help="show Ray's own messages too")
    add_storage(job)


def _do_job(arguments: argparse.Namespace) -> int:
    spec = _spec_of(arguments)  # before the imports, which take seconds
    from mnist_ray import api
    from mnist_ray.cli.report_importer import ReportImporter
    from mnist_ray.progress import ProgressDisplay

    backend = _backend_of(arguments)
    job = {"run": api.run_job, "search": api.search_job, "train": api.train_job}[arguments.job]
    with ProgressDisplay(spec.search.objective, arguments.quiet) as display:
        run = job(spec, backend, [display, ReportImporter()], progress=False)
    print_report(run)
    return 0


def _backend_of(arguments: argparse.Namespace) -> "Backend":
    if not arguments.local:
        from mnist_ray.ray_backend.backend import RayBackend

        return RayBackend(arguments.address, arguments.ray_dir, arguments.verbose)
    if arguments.address is not None:
        raise SpecError(f"--local --address {arguments.address}: --local runs without Ray: leave one of the two out")
    from mnist_ray.pipeline.local_backend import LocalBackend

    return LocalBackend()


def _plan(arguments: argparse.Namespace) -> int:
    from mnist_ray.pipeline.capacity import local_capacity
    from mnist_ray.pipeline.plan import plan
    from mnist_ray.ray_backend.address import target_of
    from mnist_ray.ray_backend.cluster import connected

    if arguments.price_per_hour is not None and arguments.price_per_hour < 0:
        raise SpecError(f"--price-per-hour {arguments.price_per_hour:g}: must be 0 or more")
    spec = _spec_of(arguments)
    if target_of(arguments.address).is_local:
        planned = plan(spec, local_capacity())
    else:
        from mnist_ray.ray_backend.jobs.submit import upload_bytes

        with connected(arguments.address, arguments.ray_dir, arguments.verbose) as capacity:
            planned = plan(spec, capacity, upload_bytes(spec))
    print("\n".join(planned.lines(arguments.price_per_hour)))
    return SpecError.exit_code if planned.obstacles else 0


def _spec_of(arguments: argparse.Namespace) -> "JobSpec":
    from mnist_ray.config import load_spec
    from mnist_ray.storage.files import storage_path

    spec = load_spec(arguments.spec, overrides_of(arguments))
    storage = storage_path(spec.storage)
    if isinstance(storage, Path):
        storage = (arguments.storage_root or Path()) / storage
    return spec.model_copy(update={"storage": str(storage)})
