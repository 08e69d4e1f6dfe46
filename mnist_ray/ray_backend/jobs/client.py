"""The job server of a Ray cluster, over HTTP: reached, let in, and asked what the cluster is."""

import contextlib
import logging
import os
import platform
import re
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from mnist_ray.config import JobSpec
from mnist_ray.errors import SpecError
from mnist_ray.ray_backend.cluster import Capacity, shown

ANSWER_S = 60.0  # a busy head takes long to start a job; Ray's own client would wait for ever
CONNECT_S = 5.0

_NO_DASHBOARD = "what listens there is no Ray dashboard"


class LostConnectionError(SpecError):
    """The job server does not answer now; it may again."""


class RefusedError(SpecError):
    """The job server's answer to a request is an error."""

    def __init__(self, place: str, status: int, reason: str) -> None:
        super().__init__(f"--address {place}: the job server answers with an error ({status}: {reason})")
        self.status = status
        self.reason = reason


class JobServer(JobSubmissionClient):
    """Ray's own client, but every request comes to an end, and what goes wrong is told apart.

    All methods raise LostConnectionError, RefusedError, and SpecError for a token that is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self.place = shown(address)
        for chatty in ("ray", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        try:
            with _this_address_counts(address):
                super().__init__(address)
        except AuthenticationError as error:
            raise SpecError(self._about_token(error)) from None

    def get(self, endpoint: str) -> Any:
        """An answer's JSON; None where it is none."""
        answer = self._do_request("GET", endpoint)
        if answer.status_code != 200:
            self._raise_error(answer)
        try:
            return answer.json()
        except ValueError:
            return None

    def _check_connection_and_version(self, *_: object, **__: object) -> None:
        """`check_is_ray` says more than Ray does."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=(CONNECT_S, ANSWER_S), **options)
        except AuthenticationError as error:
            raise SpecError(self._about_token(error)) from None
        except OSError as error:  # all of requests' errors are
            raise LostConnectionError(f"--address {self.place}: {_reason(error)}") from None

    def _raise_error(self, r: Any) -> NoReturn:
        said = [line for line in r.text.splitlines() if line.strip(" .")]  # Ray ends a traceback with a full stop
        raise RefusedError(self.place, r.status_code, said[-1] if said else "without a word")

    def _about_token(self, error: AuthenticationError) -> str:
        what = "is not this cluster's" if "Authentication failed" in str(error) else "is missing"
        return (
            f"--address {self.place}: the cluster wants a token, and the one here {what}: copy ~/.ray/auth_token of "
            "its head to the same place here ($RAY_AUTH_TOKEN_PATH names another) and set RAY_AUTH_MODE=token"
        )


@contextlib.contextmanager
def _this_address_counts(address: str) -> Iterator[None]:
    """Ray's client prefers $RAY_ADDRESS to the address it is given, and this variable to both."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _reason(error: OSError) -> str:
    """In one line; requests packs the system's own words into several errors."""
    text = str(error)
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    if found or "ConnectTimeout" in type(error).__name__:
        said = found.group(1) if found else f"no answer within {CONNECT_S:g} s"
        return (
            f"nothing answers there ({said}): give the http address of the head's dashboard, or open a tunnel to it "
            "with 'ssh -N -L 8265:127.0.0.1:8265 HEAD'"
        )
    if "ReadTimeout" in type(error).__name__ or "Read timed out" in text:
        return f"no answer within {ANSWER_S:g} s: look at the head, or wait until it is less busy"
    return f"{_NO_DASHBOARD} ({type(error).__name__}): give the http address of the head's dashboard"


def dashboard_address(address: str | None) -> str:
    """The one asked for, or $RAY_ADDRESS. Raises SpecError if it cannot be a dashboard's."""
    asked = address or os.environ.get("RAY_ADDRESS") or ""
    try:
        parts = urlsplit(asked)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        named = f"--address {shown(asked)}: is not" if asked else "--address is missing: give"
        raise SpecError(f"{named} the http address of a head's dashboard, such as http://HEAD:8265 (or $RAY_ADDRESS)")
    return asked.rstrip("/")


def connect(address: str | None) -> JobServer:
    """The job server at an address (default: $RAY_ADDRESS). Raises SpecError that says what is wrong with it."""
    server = JobServer(dashboard_address(address))
    check_is_ray(server)
    return server


def check_is_ray(server: JobServer) -> None:
    """Raises SpecError where something else answers."""
    try:
        version = server.get("/api/version")
    except RefusedError as error:
        version = error.status
    if not isinstance(version, dict) or "ray_version" not in version:
        raise SpecError(f"--address {server.place}: {_NO_DASHBOARD}: give the http address of the head's dashboard")


def check_cluster(server: JobServer, spec: JobSpec) -> None:
    """Raises SpecError where a job could only fail: other versions, or never enough CPUs or GPUs."""
    _check_versions(server)
    capacity = known_capacity(server)
    if capacity is not None:
        capacity.num_concurrent_trials(spec)
        capacity.check_retraining(spec)


def _check_versions(server: JobServer) -> None:
    """Ray's to the last digit, Python's without it."""
    theirs = {"Ray": server.get("/api/version")["ray_version"]}
    with contextlib.suppress(RefusedError, KeyError, TypeError):  # other releases of Ray need not know this path
        theirs["Python"] = _minor(server.get("/api/v0/cluster_metadata")["data"]["pythonVersion"])
    ours = {"Ray": ray.__version__, "Python": _minor(platform.python_version())}
    differing = [f"{name} {theirs[name]} (here {ours[name]})" for name in theirs if theirs[name] != ours[name]]
    if differing:
        raise SpecError(
            f"--address {server.place}: the cluster has {' and '.join(differing)}: install the same on both, from this "
            "project's requirements.txt"
        )


def _minor(python_version: str) -> str:
    return ".".join(python_version.split(".")[:2])


def known_capacity(server: JobServer) -> Capacity | None:
    """What all living nodes have; None where an autoscaler may add some, or that is not known."""
    try:
        status = server.get("/api/cluster_status")["data"]["clusterStatus"]
        types = status["autoscalerReport"]["nodeTypeMapping"]
        if not types or any(kind != f"node_{node}" for node, kind in types.items()):
            return None  # only nodes that joined by hand are types of their own
        nodes = server.get("/api/v0/nodes?detail=true&limit=10000")["data"]["result"]["result"]
        has = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        cpus, gpus = (int(sum(node.get(kind, 0) for node in has)) for kind in ("CPU", "GPU"))
    except (KeyError, TypeError, RefusedError):
        return None
    return Capacity(cpus, gpus)
