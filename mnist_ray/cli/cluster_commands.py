"""The commands that work with a cluster from outside: submit, status, logs, stop, fetch."""

import argparse
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.cli.arguments import add_command, add_overrides, overrides_of

if TYPE_CHECKING:
    from mnist_ray.ray_backend.jobs.client import JobServer
    from mnist_ray.ray_backend.jobs.submit import Job

CODES_OF_A_JOB = range(2, 8)  # that `mnist-ray run` itself ends with (see cli.py); any other is a crash


def add_remote_commands(commands: Any) -> None:
    submit = add_command(
        commands, "submit", _submit, "run a spec as a job of a cluster and follow it; once, however often"
    )
    submit.add_argument("spec", type=Path, help="a job spec, such as jobs/mnist.yaml")
    add_overrides(submit)
    submit.add_argument("--data-dir", help="where the data sets lie on the cluster's nodes")
    submit.add_argument(
        "--storage",
        help="the folder that holds the runs there; a relative one lies below ~/mnist_ray (default: the spec's)",
    )
    _add_address(submit)
    status = add_command(commands, "status", _status, "the runs that a cluster has as jobs, or one of them")
    status.add_argument("run", nargs="?", metavar="RUN")
    _add_address(status)
    logs = add_command(commands, "logs", _logs, "what a run's job has said so far")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("--follow", action="store_true", help="until the job is over; its outcome is the exit code")
    _add_address(logs)
    stop = add_command(commands, "stop", _stop, "end a run's job in good order; the same submit goes on with it")
    stop.add_argument("run", metavar="RUN")
    _add_address(stop)
    fetch = add_command(commands, "fetch", _fetch, "bring a run here: record, tables, model and report")
    fetch.add_argument("run", metavar="RUN")
    fetch.add_argument("--storage", help="the folder that holds the runs there (default: what its job says)")
    fetch.add_argument("--to", default="results", help="the folder that holds the runs here (default: ./results)")
    _add_address(fetch)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="URL", help="of the dashboard: http://HEAD:8265 (default: $RAY_ADDRESS)")


def _submit(arguments: argparse.Namespace) -> int:
    from mnist_ray.config import load_spec

    spec = load_spec(arguments.spec, overrides_of(arguments))
    from mnist_ray.ray_backend.jobs.client import check_cluster, connect
    from mnist_ray.ray_backend.jobs.submit import storage_on_cluster, submit

    spec = spec.model_copy(update={"storage": storage_on_cluster(spec.storage)})
    server = connect(arguments.address)
    check_cluster(server, spec)
    return _followed(server, submit(server, spec, _note))


def _status(arguments: argparse.Namespace) -> int:
    from tabulate import tabulate

    from mnist_ray.ray_backend.jobs.client import connect
    from mnist_ray.ray_backend.jobs.submit import jobs, known_job

    server = connect(arguments.address)
    if arguments.run is not None:
        print("\n".join(_facts(known_job(server, arguments.run))))
        return 0
    latest: dict[str, Job] = {}
    for job in jobs(server):
        latest.setdefault(job.run, job)
    rows = [
        {"run": job.run, "state": job.state, "since": _time(job), "how it ended": _ending(job)}
        for job in latest.values()
    ]
    print(tabulate(rows, headers="keys", tablefmt="plain") or f"no jobs of this project on {server.place}")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from mnist_ray.ray_backend.jobs.client import connect
    from mnist_ray.ray_backend.jobs.submit import known_job, print_log

    server = connect(arguments.address)
    job = known_job(server, arguments.run)
    if arguments.follow:
        return _followed(server, job)
    print_log(server, job, _write)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from mnist_ray.ray_backend.jobs.client import connect
    from mnist_ray.ray_backend.jobs.submit import stop

    job, was_going = stop(connect(arguments.address), arguments.run)
    if was_going and job.state == "stopped":
        print(f"{job.id} is stopped: the same 'mnist-ray submit' goes on with the run")
    else:
        print(f"{job.id} has {job.state} already{_in_brackets(_ending(job))}: nothing to stop")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from mnist_ray.ray_backend.jobs.fetch import fetched, packed_run
    from mnist_ray.report.write import write_report

    text = packed_run(arguments.address, arguments.run, arguments.storage, _note)
    destination = Path(arguments.to).expanduser().absolute() / arguments.run
    with fetched(text, destination) as run:
        lines = write_report(run).summary()
        is_finished = run.stage("tested") is not None
    print("\n".join([*lines, f"report: {destination / run.report.name}", f"everything lies in {destination}"]))
    if not is_finished:
        print(f"{arguments.run} is not finished: this is as far as it has come; the same command brings the rest")
    return 0


# --- following -----------------------------------------------------------------------------------------------------


def _followed(server: "JobServer", job: "Job") -> int:
    """The job's own exit code, once it is over. Raises InterruptedRunError, TrainingFailedError."""
    from mnist_ray.errors import InterruptedRunError
    from mnist_ray.ray_backend.jobs.submit import follow

    try:
        return _outcome(follow(server, job.id, _write, _note))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"{job.id} goes on: 'mnist-ray logs {job.run} --follow' follows it again, 'mnist-ray stop {job.run}' ends "
            "it"
        ) from None


def _outcome(job: "Job") -> int:
    from mnist_ray.errors import InterruptedRunError, TrainingFailedError

    if job.state == "succeeded":
        return 0
    if job.state == "stopped":
        raise InterruptedRunError(f"{job.id} was stopped: the same 'mnist-ray submit' goes on with the run")
    if job.exit_code is not None and job.exit_code in CODES_OF_A_JOB:
        _note(f"{job.id} failed ({_ending(job)})")
        return job.exit_code
    raise TrainingFailedError(f"{job.id} failed: {job.message}: the same 'mnist-ray submit' goes on with the run")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    print(f"mnist-ray: {text}", file=sys.stderr, flush=True)


# --- showing -------------------------------------------------------------------------------------------------------


def _facts(job: "Job") -> list[str]:
    facts = [
        ("job", job.id),
        ("state", f"{job.state} since {_time(job)}"),
        ("how it ended", _ending(job)),
        ("storage", job.metadata.get("mnist_ray_storage", "")),
        ("mnist_ray", job.metadata.get("mnist_ray_version", "")),
    ]
    return [f"{name:<13} {text}" for name, text in facts if text]


def _time(job: "Job") -> str:
    return datetime.fromtimestamp(job.since_s).strftime("%Y-%m-%d %H:%M:%S")


def _ending(job: "Job") -> str:
    if job.state != "failed":
        return ""
    return f"exit code {job.exit_code}" if job.exit_code in CODES_OF_A_JOB else job.message


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
