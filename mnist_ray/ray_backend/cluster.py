"""Joining a Ray cluster, or starting one for this process alone, and what it has room for."""

import contextlib
import json
import logging
import math
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mnist_ray.config import JobSpec, Retrain
from mnist_ray.errors import SpecError
from mnist_ray.pipeline.provenance import processor
from mnist_ray.record.process import is_gone, this_process
from mnist_ray.storage.files import write_json

# Read by Ray when it is imported or started; a value that the user has set stays.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own progress tables
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of two seconds delays the end of short trainings
    # How long a group of workers may wait for its places before Ray Train counts anew how many there are. It learns up
    # to 20 s late that a node is gone, so its first count after a loss is often too high. Places that are there are
    # given within a second; the default is a minute.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints came twice
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would return as if it had finished; Ctrl-C ends the whole job here
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three more files a trial that nothing reads
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # a list of all trials, every ten seconds, that nothing reads
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports why, and has no score
    "OMP_WAIT_POLICY": "PASSIVE",
}


SESSION_MARK = "mnist_ray.json"

# What the nodes of a cluster must have, in the driver's versions; the package itself travels with the job.
PACKAGES_ON_EVERY_NODE = ("ray", "torch", "torchvision", "optuna", "numpy")


@dataclass(frozen=True)
class Capacity:
    """What a cluster has in all, busy or not."""

    cpus: int
    gpus: int
    processors: tuple[str, ...] = ()  # the different ones of its nodes

    def num_concurrent_trials(self, spec: JobSpec) -> int:
        """As many trials at once as fit, within the spec's own limit. Raises SpecError if not even one does."""
        search, most = spec.search, self._grown(spec)
        self._check("search.cpus_per_trial", search.cpus_per_trial, "CPUs", most.cpus)
        self._check("search.gpus_per_trial", search.gpus_per_trial, "GPUs", most.gpus)
        room = [most.cpus // search.cpus_per_trial]
        if search.gpus_per_trial:
            room.append(math.floor(most.gpus / search.gpus_per_trial + 1e-9))
        if search.max_concurrent_trials is not None:
            room.append(search.max_concurrent_trials)
        return min(room)

    def num_workers(self, retrain: Retrain) -> int:
        """As many workers of a retraining as fit now, within its own limit; 1 where none does yet."""
        room = [self.cpus // retrain.cpus_per_worker]
        if retrain.gpus_per_worker:
            room.append(self.gpus // retrain.gpus_per_worker)
        return max(1, min(*room, retrain.most_workers))

    def check_retraining(self, spec: JobSpec) -> None:
        """Raises SpecError where not even the fewest workers can ever run at once."""
        retrain, most = spec.retrain, self._grown(spec)
        fewest = retrain.fewest_workers
        for per_worker, kind, has in (
            (retrain.cpus_per_worker, "CPUs", most.cpus),
            (retrain.gpus_per_worker, "GPUs", most.gpus),
        ):
            if fewest * per_worker > has:
                key = "workers" if has >= per_worker > 0 else f"{kind[:-1].lower()}s_per_worker"
                raise SpecError(
                    f"retrain.{key}: {fewest} workers with {per_worker} {kind} each need "
                    f"{fewest * per_worker} {kind}, the cluster has {has}: use --set "
                    f"{_fewer_workers(retrain, max(has // per_worker, 1))}"
                    + ("" if has >= per_worker else f" --set retrain.{key}={has}")
                    + ", or a larger cluster (--address)"
                )

    def _grown(self, spec: JobSpec) -> "Capacity":
        """With what the spec says that the autoscaler may add. Raises SpecError if there is no CPU even then."""
        cpus, gpus = max(self.cpus, spec.autoscaling.cpus), max(self.gpus, spec.autoscaling.gpus)
        if cpus == 0:
            raise SpecError(
                "the cluster has no CPUs for work: let nodes join it, or say how many its autoscaler may have running "
                "(--set autoscaling.cpus=8)"
            )
        return Capacity(cpus, gpus, self.processors)

    @staticmethod
    def _check(key: str, asked: float, kind: str, has: int) -> None:
        if asked > has:
            raise SpecError(
                f"{key}: a trial asks for {asked:g} {kind}, the cluster has {has}: use --set {key}={has}, "
                "or a larger cluster (--address)"
            )


def _fewer_workers(retrain: Retrain, fewest: int) -> str:
    """As a shell takes it."""
    if isinstance(retrain.workers, int):
        return f"retrain.workers={fewest}"
    return f"'retrain.workers=[{fewest}, {retrain.most_workers}]'"


def local_capacity() -> Capacity:
    """The CPUs that this process may use, and no knowledge of GPUs (Ray finds those when it starts)."""
    from joblib import cpu_count  # knows cgroups' limits

    return Capacity(cpu_count(), 0)


def address_in_use(address: str | None) -> str:
    """The cluster to join: the one asked for, the one whose job this process is, or "local" for a new one."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def shown(address: str) -> str:
    """An address as anybody may read it: without a user's name and password, and without a query."""
    scheme, separator, rest = address.rpartition("://")
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2]


@contextlib.contextmanager
def connected(address: str | None, temporary_folder: Path | None, verbose: bool) -> Iterator[Capacity]:
    """Join `address`, or start a cluster of this machine's CPUs; leave it at the end. Raises SpecError."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray").setLevel(level)
    target = address_in_use(address)
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    if target == "local":
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process more, for notices that none gives
        options |= {"num_cpus": local_capacity().cpus, "include_dashboard": False}
        if temporary_folder is not None:
            options["_temp_dir"] = str(temporary_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Ray's own, about a setting of 2.x
        try:
            _knock(target)
            context: Any = ray.init(address=target, **options)
            session = Path(context.address_info["session_dir"])
        except Exception as error:  # Ray raises bare ones too
            reason = (str(error).splitlines() or [type(error).__name__])[0].replace(target, shown(target))
            if target == "local":
                raise SpecError(
                    f"Ray did not start on this machine ({reason}): run the same command again when the machine is "
                    "less busy; --ray-dir names another folder for Ray's temporary files"
                ) from None
            raise SpecError(
                f"--address {shown(target)}: no Ray cluster answers there ({reason}): start one with "
                "'ray start --head', or leave --address out to use this machine alone"
            ) from None
    _protect_token()
    if target == "local":
        _mark_session(session)
    try:
        processors = [processor()] if target == "local" else _check_nodes(shown(target))
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield Capacity(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), tuple(sorted(set(processors))))
    finally:
        ray.shutdown()
        if target == "local":
            shutil.rmtree(session, ignore_errors=True)


def _mark_session(session: Path) -> None:
    """Say whose temporary files these are, and remove those of processes that were killed: Ray never does."""
    write_json(session / SESSION_MARK, this_process())
    for mark in session.parent.glob(f"session_*/{SESSION_MARK}"):
        with contextlib.suppress(OSError, ValueError):
            if is_gone(json.loads(mark.read_text(encoding="utf-8"))):
                shutil.rmtree(mark.parent, ignore_errors=True)


def _knock(target: str) -> None:
    """Raises OSError within three seconds if nothing listens at an address; Ray itself tries for minutes."""
    host, _, port = shown(target).rstrip("/").rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=3).close()


def _check_nodes(target: str) -> list[str]:
    """Every node must have the driver's packages. Returns their processors.

    Raises SpecError that names the node and what differs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    expected = installed_versions()
    look = ray.remote(num_cpus=0)(_versions_and_processor)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): host
        for node, host in nodes.items()
    }
    processors = []
    for answer, host in asked.items():
        try:
            found, its_processor = ray.get(answer, timeout=60)
        except ray.exceptions.RayError as error:
            raise SpecError(
                f"--address {target}: node {host} cannot run this package ({' '.join(str(error).split())[-200:]}): "
                "send it with 'ray job submit --working-dir .', or install it on every node"
            ) from None
        differing = [
            f"{name} {found[name]} instead of {expected[name]}" for name in expected if found[name] != expected[name]
        ]
        if differing:
            raise SpecError(
                f"--address {target}: node {host} has {', '.join(differing)}: install this project's requirements.txt "
                "on every node"
            )
        processors.append(its_processor)
    return processors


def _versions_and_processor() -> tuple[dict[str, str], str]:
    return installed_versions(), processor()


def installed_versions() -> dict[str, str]:
    """The versions of PACKAGES_ON_EVERY_NODE in this process; "none" for a missing one."""
    versions = {}
    for name in PACKAGES_ON_EVERY_NODE:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return versions


def _protect_token() -> None:
    """A new local cluster writes ~/.ray/auth_token, readable by everyone; whoever reads it can run code here."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
