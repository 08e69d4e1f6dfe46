"""Joining a Ray cluster, or starting one for this process alone, and what it has room for."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from mnist_ray.errors import InterruptedRunError, SpecError
from mnist_ray.pipeline.capacity import Capacity, local_capacity
from mnist_ray.pipeline.provenance import installed_versions, processor
from mnist_ray.ray_backend.address import Target, checked_head, target_of
from mnist_ray.ray_backend.compat import (
    ENVIRONMENT,
    LOCAL_ENVIRONMENT,
    PROCESS_LIMITS,
    failed_node_ended,
    folder_options,
    loopback_only,
    needed_services_only,
    read_token_again,
    service_addresses,
    session_folders,
    temporary_folder_of,
)
from mnist_ray.ray_backend.services import (
    LEAVE_S,
    ProcessHandles,
    agents_of_own_raylet,
    leave_within,
    processes_of_own_raylet,
    watched,
)
from mnist_ray.record.events import ProcessIdentity
from mnist_ray.record.process import is_gone, this_process
from mnist_ray.storage.files import write_json

SESSION_MARK = "mnist_ray.json"
STARTING = "mnist_ray-starting-"
# Ray's node ends itself when a service of the node takes 15 s to start, which has no setting and was seen on two cores
# with ten processes waiting for each.
NUM_LOCAL_STARTS = 3

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(address: str | None, temporary_folder: Path | None, verbose: bool) -> Iterator[Capacity]:
    """Join `address`, or start a cluster of this machine's CPUs, for a block. Raises SpecError."""
    target = target_of(address)
    environment = ENVIRONMENT | (LOCAL_ENVIRONMENT if target.is_local else {}) | {"OMP_WAIT_POLICY": "PASSIVE"}
    if target.is_local:
        environment |= dict.fromkeys(PROCESS_LIMITS, str(4 * local_capacity().cpus + 8))  # those of two stages
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        read_token_again()
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray").setLevel(level)
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    session = _started(temporary_folder, options) if target.is_local else _joined(target, options)
    with contextlib.suppress(OSError):  # a new local cluster writes it readable by everyone, who could then run code
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
    of_own_raylet = ProcessHandles()
    try:
        processors = [processor()] if target.is_local else _check_nodes(target)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        capacity = Capacity(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), tuple(sorted(set(processors))))
        agents = agents_of_own_raylet() if target.is_local else {}
        of_own_raylet.hold(agents.values())
        with watched(service_addresses(), agents):
            yield capacity
    except InterruptedRunError as error:  # Ray's library may never come back from the services that it looks for
        leave_within(LEAVE_S, str(error))
        raise
    finally:
        of_own_raylet.hold(processes_of_own_raylet())
        ray.shutdown()
        of_own_raylet.end()
        if target.is_local:
            shutil.rmtree(session, ignore_errors=True)


def _joined(target: Target, options: dict[str, Any]) -> Path:
    """Join a cluster and return the folder of its session. Raises SpecError."""
    import ray

    address = checked_head(target)
    if target.address == "auto":
        logger.warning(
            "%s: joining the cluster at %s, which was started on this machine with 'ray start'", target.named, address
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Ray's own, about a setting of 2.x
            context: Any = ray.init(address=address, **options)
        return Path(context.address_info["session_dir"])
    except Exception as error:  # Ray raises bare ones too
        reason = _first_line(error).replace(target.address, target.shown)
        raise SpecError(
            f"{target.named}: the Ray cluster there cannot be joined ({reason}): check that it has the same Ray "
            f"version and token (~/.ray/auth_token, RAY_AUTH_MODE=token), or {target.way_out}"
        ) from None


def _started(temporary_folder: Path | None, options: dict[str, Any]) -> Path:
    """Start a cluster of this machine and return the folder of its session. Raises SpecError."""
    threading.Thread(target=import_module, args=["ray.tune"], daemon=True).start()  # a second, while Ray starts
    own = {"num_cpus": local_capacity().cpus, "include_dashboard": False, **folder_options(temporary_folder)}
    parent = temporary_folder_of(temporary_folder)
    try:
        make_token()
        lean = needed_services_only(options["log_to_driver"])
        with _noted_start(parent), warnings.catch_warnings(), loopback_only(), lean:
            warnings.simplefilter("ignore", FutureWarning)
            context = _start_local({**options, **own})
            session = Path(context.address_info["session_dir"])
            _mark_session(session)
        return session
    except Exception as error:
        reason = _first_line(error)
        raise SpecError(
            f"Ray did not start on this machine ({reason}): {start_remedy(error, reason, parent)}"
        ) from None


def make_token() -> None:
    """Make the token that Ray asks of everybody who wants to join, if there is none, readable by this user alone.

    Where the home folder cannot be written the token is this process's own.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    file = Path("~/.ray/auth_token").expanduser()
    if file.is_file() and os.access(file, os.R_OK) and file.stat().st_size:
        return
    token = secrets.token_hex(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
            opened.write(token)
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = token


def start_remedy(error: Exception, reason: str, parent: Path) -> str:
    """Return what to do about a local cluster that did not start. parent: the folder of Ray's temporary files."""
    if "AF_UNIX path length" in reason:
        return f"{parent} is too long a path for sockets: choose a short folder with --ray-dir /tmp/NAME"
    if isinstance(error, OSError):
        place = error.filename or parent
        return f"{place} must be writable for this user: choose another folder with --ray-dir /tmp/NAME"
    return "run the same command again when the machine is less busy"


def _start_local(options: dict[str, Any]) -> Any:
    """Start a cluster of this machine, anew where Ray gives up, and return Ray's context. Raises what Ray raises."""
    import ray

    for starts_left in reversed(range(NUM_LOCAL_STARTS)):
        try:
            with failed_node_ended():
                return ray.init(address="local", **options)
        except Exception as error:
            if type(error) is not Exception or not starts_left:  # a bare one is Ray's for a node that gave up
                raise
            logger.warning("Ray did not start on this machine, starting it again: %s", _first_line(error))
    raise AssertionError


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _noted_start(parent: Path) -> Iterator[None]:
    """Note that this process starts a cluster, for a block; remove the folders of processes that were killed meanwhile.

    A session's folder is marked only when it is there. Without the note nobody would know whose an unmarked one is.
    """
    for note in parent.glob(f"{STARTING}*.json"):
        if identity := _owner_if_gone(note):
            for session in session_folders(parent, identity.pid):
                if session.stat().st_uid == os.getuid() and session.stat().st_mtime >= note.stat().st_mtime:
                    shutil.rmtree(session, ignore_errors=True)
            note.unlink(missing_ok=True)
    note = parent / f"{STARTING}{os.getpid()}.json"
    with contextlib.suppress(OSError):
        if not parent.exists():
            parent.mkdir(parents=True)
            parent.chmod(0o1777)  # as Ray, but for other users' right to remove what is not theirs
        write_json(note, asdict(this_process()))
    try:
        yield
    except BaseException:
        for session in session_folders(parent, os.getpid()):
            shutil.rmtree(session, ignore_errors=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)


def _mark_session(session: Path) -> None:
    """Note this process as the owner of a session's temporary files, and remove those of processes that were killed.

    Ray removes neither, and lets everybody read and write there.
    """
    session.chmod(0o700)
    write_json(session / SESSION_MARK, asdict(this_process()))
    for mark in session.parent.glob(f"session_*/{SESSION_MARK}"):
        if _owner_if_gone(mark):
            shutil.rmtree(mark.parent, ignore_errors=True)


def _owner_if_gone(mark: Path) -> ProcessIdentity | None:
    """Return the process that a file of this user names, if it is gone."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # TypeError: a mark of another release
        identity = ProcessIdentity(**json.loads(mark.read_text(encoding="utf-8")))
        if mark.stat().st_uid == os.getuid() and is_gone(identity):
            return identity
    return None


def _check_nodes(target: Target) -> list[str]:
    """Check that every node has the driver's packages, and return the nodes' processors.

    Raises SpecError that names the node and what differs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    expected = installed_versions()
    look = ray.remote(num_cpus=0)(_versions_and_processor)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    answers = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): host
        for node, host in nodes.items()
    }
    processors = []
    for answer, host in answers.items():
        try:
            versions, node_processor = ray.get(answer, timeout=60)
        except ray.exceptions.RayError as error:
            raise SpecError(
                f"{target.named}: node {host} cannot run this package ({' '.join(str(error).split())[-200:]}): "
                "send it with 'ray job submit --working-dir .', or install it on every node"
            ) from None
        differing = [
            f"{name} {versions[name]} instead of {expected[name]}"
            for name in expected
            if versions[name] != expected[name]
        ]
        if differing:
            raise SpecError(
                f"{target.named}: node {host} has {', '.join(differing)}: install this project's requirements.txt "
                "on every node"
            )
        processors.append(node_processor)
    return processors


def _versions_and_processor() -> tuple[dict[str, str], str]:
    return installed_versions(), processor()
