"""The commands for a cluster's job server: submit, status, logs, stop, fetch."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.cli.arguments import add_command, add_overrides, overrides_of
from mnist_ray.cli.documents import add_json, print_document
from mnist_ray.errors import OSERROR_EXIT_CODE, InterruptedRunError, MnistRayError, SpecError, TrainingFailedError

if TYPE_CHECKING:
    from mnist_ray.ray_backend.jobs.client import JobServer
    from mnist_ray.ray_backend.jobs.job import Job


def add_cluster_commands(commands: Any) -> None:
    """Add the commands of this file to the parser's `commands`."""
    submit = _add(commands, "submit", _submit, "run a spec as a job on a cluster and follow it; safe to repeat")
    submit.add_argument("spec", type=Path, help="a YAML file, or a packaged spec such as mnist (see mnist-ray specs)")
    add_overrides(submit)
    submit.add_argument("--data-dir", help="the folder of the data sets on the cluster's nodes")
    submit.add_argument(
        "--storage",
        help="the cluster's folder for runs, below ~/mnist_ray if relative (default: the spec's)",
    )
    submit.add_argument("--local", action="store_true", help=argparse.SUPPRESS)  # refused with a message
    status = _add(commands, "status", _status, "list the runs that are jobs of a cluster, or show one of them")
    status.add_argument("run", nargs="?", metavar="RUN")
    add_json(status)
    logs = _add(commands, "logs", _logs, "print the output of a run's job so far")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument(
        "--follow", action="store_true", help="follow it until the job ends, and exit with the job's exit code"
    )
    stop = _add(commands, "stop", _stop, "stop a run's job cleanly; the same submit continues the run")
    stop.add_argument("run", metavar="RUN")
    fetch = _add(commands, "fetch", _fetch, "copy a run to this machine: record, tables, model and report")
    fetch.add_argument("run", metavar="RUN")
    fetch.add_argument("--storage", help="the cluster's folder for runs (default: that of the run's job)")
    fetch.add_argument("--to", default="results", help="the folder for runs on this machine (default: ./results)")


def _add(commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    def run(arguments: argparse.Namespace) -> int:
        with _messages_on_stderr():
            return command(arguments)

    parser = add_command(commands, name, run, text)
    parser.add_argument(
        "--address", metavar="URL", help="the dashboard's address: http://HEAD:8265 (default: $RAY_ADDRESS)"
    )
    return parser


@contextlib.contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Print the log messages of jobs/ to stderr: stdout is for the output of the run's job."""
    logger = logging.getLogger("mnist_ray.ray_backend.jobs")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("mnist-ray: %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


# --- commands ----------------------------------------------------------------------------------------------------


def _submit(arguments: argparse.Namespace) -> int:
    if arguments.local:
        raise SpecError(
            "--local: 'mnist-ray submit' runs on a cluster: leave --local out, or use 'mnist-ray run --local'"
        )
    from mnist_ray.config import load_spec

    spec = load_spec(arguments.spec, overrides_of(arguments))  # before Ray is imported: a mistake is reported at once
    from mnist_ray.ray_backend.jobs.client import check_cluster, connect
    from mnist_ray.ray_backend.jobs.submit import storage_on_cluster, submit, trackers_on_cluster

    there = {"storage": storage_on_cluster(spec.storage), "log_to": trackers_on_cluster(spec.log_to)}
    spec = spec.model_copy(update=there)
    server = connect(arguments.address)
    check_cluster(server, spec)
    return _follow(server, submit(server, spec))


def _status(arguments: argparse.Namespace) -> int:
    from mnist_ray.ray_backend.jobs.client import connect
    from mnist_ray.ray_backend.jobs.follow import log_of, progress_of
    from mnist_ray.ray_backend.jobs.job import find_job, jobs

    server = connect(arguments.address)
    if arguments.run is not None:
        job = find_job(server, arguments.run)
        progress = progress_of(log_of(server, job) or "")
        if arguments.json:
            print_document(jobs=[_job_in_figures(job) | {"progress": progress}])
            return 0
        facts = [
            ("job", job.id),
            ("state", f"{job.state} since {_time(job)}"),
            ("how it ended", _failure(job)),
            ("progress", progress),
            ("storage", job.storage),
            ("mnist_ray", job.version),
        ]
        print("\n".join(f"{name:<13} {text}" for name, text in facts if text))
        return 0
    latest: dict[str, Job] = {}
    for job in jobs(server):
        latest.setdefault(job.run, job)
    if arguments.json:
        print_document(jobs=[_job_in_figures(job) for job in latest.values()])
        return 0
    from tabulate import tabulate

    rows = [
        {"run": job.run, "state": job.state, "since": _time(job), "how it ended": _failure(job)}
        for job in latest.values()
    ]
    print(tabulate(rows, headers="keys", tablefmt="plain") or f"no mnist_ray jobs on {server.address}")
    return 0


def _job_in_figures(job: "Job") -> dict[str, object]:
    """Return a job as `status --json` prints it, named as in a run's list where that has the same."""
    return {
        "run": job.run,
        "job": job.id,
        "state": job.state,
        "since": datetime.fromtimestamp(job.since_s, UTC).isoformat(timespec="seconds"),
        "exit_code": job.exit_code,
        "failure": _failure(job) or None,
        "storage": job.storage,
        "version": job.version,
    }


def _logs(arguments: argparse.Namespace) -> int:
    from mnist_ray.ray_backend.jobs.client import connect
    from mnist_ray.ray_backend.jobs.follow import print_log
    from mnist_ray.ray_backend.jobs.job import find_job

    server = connect(arguments.address)
    job = find_job(server, arguments.run)
    if arguments.follow:
        return _follow(server, job)
    print_log(server, job, _write)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from mnist_ray.ray_backend.jobs.client import connect
    from mnist_ray.ray_backend.jobs.follow import stop

    job, was_running = stop(connect(arguments.address), arguments.run)
    if was_running and job.state == "stopped":
        print(f"{job.id} is stopped: the same 'mnist-ray submit' continues the run")
    else:
        failure = _failure(job)
        print(f"{job.id} has {job.state} already{f' ({failure})' if failure else ''}: nothing to stop")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from mnist_ray.ray_backend.jobs.fetch import fetch_record, unpacked_run
    from mnist_ray.report.write import write_report

    record = fetch_record(arguments.address, arguments.run, arguments.storage)
    destination = Path(arguments.to).expanduser().absolute() / arguments.run
    with unpacked_run(record, destination) as run:
        lines = write_report(run).summary()
        is_finished = run.state.tested is not None
    print("\n".join([*lines, f"report: {destination / run.paths.report.name}", f"all files: {destination}"]))
    if not is_finished:
        print(f"{arguments.run} is not finished: these are the results so far; the same command later fetches the rest")
    return 0


# --- jobs --------------------------------------------------------------------------------------------------------


def _follow(server: "JobServer", job: "Job") -> int:
    """Print a job's output until the job has ended; return its exit code. Raises as `exit_code_of`."""
    from mnist_ray.ray_backend.jobs.follow import follow

    try:
        return exit_code_of(follow(server, job.id, _write))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"{job.id} keeps running: 'mnist-ray logs {job.run} --follow' follows it again, 'mnist-ray stop {job.run}' "
            "stops it"
        ) from None


def exit_code_of(job: "Job") -> int:
    """Return the exit code of a job that has ended.

    Raises InterruptedRunError for a job that was stopped, TrainingFailedError for one that crashed.
    """
    if job.state == "succeeded":
        return 0
    if job.state == "stopped":
        raise InterruptedRunError(f"{job.id} was stopped: the same 'mnist-ray submit' continues the run")
    if job.exit_code in (126, 127):  # the shell's, for a command that is not there or cannot run
        raise TrainingFailedError(
            f"{job.id} failed: {job.message}: if the head has no 'python' on its path, start Ray there from an "
            "environment with this project's requirements.txt (source .venv/bin/activate), then submit again"
        )
    if job.exit_code is None or job.exit_code not in _reported_exit_codes():
        raise TrainingFailedError(f"{job.id} failed: {job.message}: the same 'mnist-ray submit' continues the run")
    print(f"mnist-ray: {job.id} failed ({_failure(job)})", file=sys.stderr)
    return job.exit_code


def _reported_exit_codes() -> set[int]:
    """Return the exit codes with which `mnist-ray run` reports an error; a job with any other one has crashed."""
    codes = {error.exit_code for error in MnistRayError.__subclasses__()}
    return codes - {MnistRayError.exit_code} | {OSERROR_EXIT_CODE}


def _failure(job: "Job") -> str:
    """Describe why a job failed; "" where the job did not fail."""
    if job.state != "failed":
        return ""
    return f"exit code {job.exit_code}" if job.exit_code in _reported_exit_codes() else job.message


def _time(job: "Job") -> str:
    return datetime.fromtimestamp(job.since_s).strftime("%Y-%m-%d %H:%M:%S")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
