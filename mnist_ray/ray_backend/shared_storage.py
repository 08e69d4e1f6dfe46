"""Whether every node sees the storage that a run names, before anything is trained."""

import secrets
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.errors import SpecError
from mnist_ray.storage.files import StoragePath, read, remove_tree, storage_path, write_atomic

ANSWER_S = 120.0  # an outage of a store is waited for on the nodes too


def check_shared(folder: StoragePath) -> None:
    """Each node reads what this process writes below `folder`, and this process what the node writes.

    Raises SpecError that names the node and the storage, OSError where this process itself cannot write.
    """
    signs = folder / "nodes"
    word = secrets.token_hex(16)
    write_atomic(signs / "driver", word.encode())
    try:
        for node in _asked(signs, word):
            trouble = _trouble(node.answer) or _missing_here(signs / node.id, word)
            if trouble:
                raise SpecError(
                    f"storage {folder}: node {node.host} does not share it ({trouble}): mount the same storage on "
                    "every node and give each the right to it, or name another (--storage)"
                )
    finally:
        remove_tree(signs)


class _Asked(NamedTuple):
    """A node, and the reference of what it will answer."""

    answer: Any
    host: str
    id: str


def _asked(signs: StoragePath, word: str) -> list[_Asked]:
    """Every living node."""
    leave_sign = ray.remote(num_cpus=0)(_leave_sign)
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [
        _Asked(
            leave_sign.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0
            ).remote(str(signs), node["NodeID"], word),
            node["NodeManagerAddress"],
            node["NodeID"],
        )
        for node in nodes
    ]


def _leave_sign(signs: str, node_id: str, word: str) -> str | None:
    """On a node: what is in the way, None if nothing is."""
    folder = storage_path(signs)
    try:
        if read(folder / "driver") != word.encode():
            return "it finds something else there than the driver has written"
        write_atomic(folder / node_id, word.encode())
    except FileNotFoundError:
        return "it does not find there what the driver has written"
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _trouble(answer: Any) -> str | None:
    try:
        trouble: str | None = ray.get(answer, timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        return f"it did not answer: {' '.join(str(error).split())[-200:]}"
    return trouble


def _missing_here(sign: StoragePath, word: str) -> str | None:
    try:
        found = read(sign)
    except FileNotFoundError:
        found = b""
    return None if found == word.encode() else "the driver does not find there what the node has written"
