"""The commands that work on a job spec here: run, search, train, plan."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.cli.arguments import add_command, add_overrides, add_storage, overrides_of
from mnist_ray.cli.documents import add_json, print_document
from mnist_ray.cli.run_commands import print_report
from mnist_ray.errors import SpecError

if TYPE_CHECKING:
    from mnist_ray.config import JobSpec
    from mnist_ray.pipeline.backend import Backend
    from mnist_ray.pipeline.plan import Plan


def add_job_commands(commands: Any) -> None:
    """Add run, search, train and plan to the parser."""
    for name, text in (
        ("run", "search, select, retrain, test, write the tables and the report"),
        ("search", "only search and select; `run` continues from there"),
        ("train", "train and test the spec's `recipe` with the parts of `training`, without a search"),
    ):
        job = add_command(commands, name, _do_job, text)
        job.set_defaults(job=name)
        job.add_argument(
            "spec", type=Path, help="a YAML file, or a packaged spec such as quickstart (see mnist-ray specs)"
        )
        job.add_argument(
            "--local", action="store_true", help="train without Ray, one training after another in this process"
        )
        job.add_argument("-q", "--quiet", action="store_true", help="show only warnings and the result")
        _add_job_options(job)
    plan = add_command(
        commands, "plan", _plan, "show what a job needs, how long it takes and what would stop it, without starting it"
    )
    plan.add_argument("spec", type=Path, help="a YAML file, or a packaged spec such as mnist (see mnist-ray specs)")
    plan.add_argument(
        "--price-per-hour", type=float, help="the price of the whole cluster, in any currency, for the cost of the job"
    )
    add_json(plan)
    _add_job_options(plan)


def _add_job_options(job: argparse.ArgumentParser) -> None:
    add_overrides(job)
    job.add_argument(
        "--data-dir", help="the folder of the data sets (default: $MNIST_RAY_DATA, then ~/.cache/mnist_ray)"
    )
    job.add_argument("--address", help="the address of a Ray cluster (default: $RAY_ADDRESS, then this machine only)")
    job.add_argument(
        "--ray-dir", type=Path, help="the folder for Ray's temporary files, when Ray runs on this machine only"
    )
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
        raise SpecError(f"--local --address {arguments.address}: --local runs without Ray, so leave out one of the two")
    from mnist_ray.pipeline.local_backend import LocalBackend

    return LocalBackend()


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.price_per_hour is not None and arguments.price_per_hour < 0:
        raise SpecError(f"--price-per-hour {arguments.price_per_hour:g}: must be 0 or more")
    spec = _spec_of(arguments)  # before the imports, which take seconds
    from mnist_ray.pipeline.capacity import local_capacity
    from mnist_ray.pipeline.plan import plan
    from mnist_ray.ray_backend.address import target_of
    from mnist_ray.ray_backend.cluster import connected

    if target_of(arguments.address).is_local:
        planned = plan(spec, local_capacity())
    else:
        from mnist_ray.ray_backend.jobs.submit import upload_bytes

        with connected(arguments.address, arguments.ray_dir, arguments.verbose) as capacity:
            planned = plan(spec, capacity, upload_bytes(spec))
    if arguments.json:
        print_document(**asdict(planned) | _totals(planned, arguments.price_per_hour))
    else:
        print("\n".join(planned.lines(arguments.price_per_hour)))
    return SpecError.exit_code if planned.obstacles else 0


def _totals(planned: "Plan", price_per_hour: float | None) -> dict[str, Any]:
    """Return what follows from a plan's fields, for `plan --json`."""
    total, cost = planned.total, planned.cost(price_per_hour)
    return {
        "facts": dict(planned.facts),
        "total": total and asdict(total),
        "cost": cost and cost._asdict(),
        "is_possible": not planned.obstacles,
    }


def _spec_of(arguments: argparse.Namespace) -> "JobSpec":
    from mnist_ray.config import load_spec
    from mnist_ray.storage.files import storage_path

    spec = load_spec(arguments.spec, overrides_of(arguments))
    storage = storage_path(spec.storage)
    if isinstance(storage, Path):
        storage = (arguments.storage_root or Path()) / storage
    return spec.model_copy(update={"storage": str(storage)})
