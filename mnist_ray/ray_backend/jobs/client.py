"""The HTTP connection to the job server of a Ray cluster, and the checks of a cluster before a job is submitted."""

import contextlib
import logging
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from mnist_ray.config import JobSpec
from mnist_ray.errors import SpecError
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.ray_backend.address import Target, shown, target_of
from mnist_ray.ray_backend.compat import AnswerError, TimedRequests

ANSWER_S = 60.0  # a busy head takes long to start a job
CONNECT_S = 5.0
FIRST_ANSWER_S = 15.0  # to the question whether a dashboard is there

_REMEDY = "give the http address of the head's dashboard"


class LostConnectionError(SpecError):
    """A request without an answer; a later one may be answered."""


class RefusedError(SpecError):
    """An answer of the job server that is an error."""

    def __init__(self, named: str, status: int, reason: str) -> None:
        super().__init__(f"{named}: the job server answered with an error ({status}: {reason})")
        self.status = status
        self.reason = reason


class JobClient(TimedRequests, JobSubmissionClient):
    """Ray's job client with a time limit for every request."""


class JobServer:
    """A connection to the job server of a cluster. Every request has a time limit.

    All methods raise LostConnectionError, RefusedError, and SpecError for a token that is missing or wrong.
    """

    def __init__(self, address: str, origin: str = "--address") -> None:
        self.address = shown(address)
        self.named = Target(address, origin).named
        for verbose in ("ray", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(verbose).setLevel(logging.WARNING)
        with self._translated_errors():
            self._client = JobClient(address, CONNECT_S, ANSWER_S)

    def get_json(self, endpoint: str, answer_s: float = ANSWER_S) -> Any:
        """Return the JSON at an endpoint of the dashboard; None where the answer is no JSON."""
        with self._translated_errors():
            return self._client.get_json(endpoint, answer_s)

    def list_jobs(self) -> list[JobDetails]:
        """Return all jobs of the cluster, those of other projects too."""
        with self._translated_errors():
            return self._client.list_jobs()

    def job(self, job_id: str) -> JobDetails:
        """Return one job; the answer's status is 404 where the cluster has no such job."""
        with self._translated_errors():
            return self._client.get_job_info(job_id)

    def log(self, job_id: str) -> str:
        """Return a job's whole log so far."""
        with self._translated_errors():
            return self._client.get_job_logs(job_id)

    def submit(
        self,
        job_id: str,
        command: str,
        folder: Path,
        environment: dict[str, str],
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Start a job: `command` in a copy of `folder`, with the variables of `environment` set."""
        with self._translated_errors():
            self._client.submit_job(
                submission_id=job_id,
                entrypoint=command,
                runtime_env={"working_dir": str(folder), "env_vars": environment},
                metadata=metadata,
            )

    def stop(self, job_id: str) -> None:
        """Ask a job to end; return before the job has ended."""
        with self._translated_errors():
            self._client.stop_job(job_id)

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended from the server's list."""
        with self._translated_errors():
            self._client.delete_job(job_id)

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise SpecError(f"{self.named}: {token_fault('Authentication failed' in str(error))}") from None
        except AnswerError as error:
            lines = [line for line in error.text.splitlines() if line.strip(" .")]  # a traceback ends with a full stop
            raise RefusedError(self.named, error.status, lines[-1] if lines else "no reason given") from None
        except OSError as error:
            raise LostConnectionError(f"{self.named}: {_connection_fault(error)}") from None


def token_fault(was_sent: bool) -> str:
    """Describe what is wrong with the token here, and what to type."""
    if was_sent:
        return (
            "the cluster requires a token, and the one on this machine is not valid for it: copy ~/.ray/auth_token of "
            "its head to the same path here ($RAY_AUTH_TOKEN_PATH names another)"
        )
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if (file.is_file() or os.environ.get("RAY_AUTH_TOKEN")) and os.environ.get("RAY_AUTH_MODE") != "token":
        return "the cluster requires a token, which this machine has but does not send: export RAY_AUTH_MODE=token"
    return (
        f"the cluster requires a token, and {file} is missing: copy ~/.ray/auth_token of its head there and set "
        "RAY_AUTH_MODE=token"
    )


def _connection_fault(error: OSError) -> str:
    """Describe a failed connection in one line; requests packs the system's message into several errors."""
    text = str(error)
    if "ProxyError" in type(error).__name__:
        return "the proxy in $http_proxy rejected the request: add the head's name to $no_proxy"
    system_message = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    if system_message or "ConnectTimeout" in type(error).__name__:
        reason = system_message.group(1) if system_message else f"no answer within {CONNECT_S:g} s"
        return (
            f"nothing answers there ({reason}): {_REMEDY}, or open a tunnel to it with "
            "'ssh -N -L 8265:127.0.0.1:8265 HEAD'"
        )
    if "ReadTimeout" in type(error).__name__ or "Read timed out" in text:
        limit = re.search(r"read timeout=([\d.]+)", text)
        within = f" within {float(limit.group(1)):g} s" if limit else ""
        return (
            f"something accepts connections there but does not answer{within}: {_REMEDY}, or wait until the head is "
            "less busy"
        )
    return f"the server there is not a Ray dashboard ({type(error).__name__}): {_REMEDY}"


# --- connecting --------------------------------------------------------------------------------------------------


def connect(address: str | None) -> JobServer:
    """Connect to the job server at an address (default: $RAY_ADDRESS).

    Raises SpecError for an address that is none, and where no Ray dashboard answers.
    """
    server = JobServer(dashboard_address(address), target_of(address).origin)
    try:
        version = server.get_json("/api/version", FIRST_ANSWER_S)
    except RefusedError as error:
        version = error.status
    if not isinstance(version, dict) or "ray_version" not in version:
        raise SpecError(f"{server.named}: the server there is not a Ray dashboard: {_REMEDY}")
    return server


def dashboard_address(address: str | None) -> str:
    """Return `address`, or $RAY_ADDRESS without one. Raises SpecError for an address that is not a dashboard's."""
    target = target_of(address)
    address = "" if target.is_local else target.address
    try:
        parts = urlsplit(address)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        fault = f"{target.named}: is not" if address else "--address is missing: give"
        raise SpecError(f"{fault} the http address of a head's dashboard, such as http://HEAD:8265 (or $RAY_ADDRESS)")
    return address.rstrip("/")


# --- checking the cluster ----------------------------------------------------------------------------------------


def check_cluster(server: JobServer, spec: JobSpec) -> None:
    """Raise SpecError where a job could only fail: other versions of Ray or Python, or too few CPUs or GPUs."""
    _check_versions(server)
    capacity = fixed_capacity(server)
    if capacity is not None:
        capacity.num_concurrent_trials(spec)
        capacity.check_retraining(spec)


def _check_versions(server: JobServer) -> None:
    """Compare all digits of Ray's version, and the first two numbers of Python's."""
    there = {"Ray": server.get_json("/api/version", FIRST_ANSWER_S)["ray_version"]}
    with contextlib.suppress(RefusedError, KeyError, TypeError):  # other releases of Ray may lack this endpoint
        python = server.get_json("/api/v0/cluster_metadata")["data"]["pythonVersion"]
        there["Python"] = ".".join(python.split(".")[:2])
    here = {"Ray": ray.__version__, "Python": ".".join(platform.python_version_tuple()[:2])}
    differing = [f"{name} {there[name]} (here {here[name]})" for name in there if there[name] != here[name]]
    if differing:
        raise SpecError(
            f"{server.named}: the cluster has {' and '.join(differing)}: install the same on both, from "
            "this project's requirements.txt"
        )


def fixed_capacity(server: JobServer) -> Capacity | None:
    """Return the capacity of all living nodes; None where an autoscaler may add nodes, or the answer is unknown."""
    try:
        status = server.get_json("/api/cluster_status")["data"]["clusterStatus"]
        types = status["autoscalerReport"]["nodeTypeMapping"]
        if not types or any(kind != f"node_{node}" for node, kind in types.items()):
            return None  # each node that joined by hand has a type of its own
        nodes = server.get_json("/api/v0/nodes?detail=true&limit=10000")["data"]["result"]["result"]
        resources = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        cpus, gpus = (int(sum(each.get(kind, 0) for each in resources)) for kind in ("CPU", "GPU"))
    except (KeyError, TypeError, RefusedError):
        return None
    return Capacity(cpus, gpus)
