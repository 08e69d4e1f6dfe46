"""A check before anything is trained: every node must share the run's storage."""

import secrets
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.errors import SpecError
from mnist_ray.storage.files import StoragePath, read, remove_tree, storage_path, write_atomic

ANSWER_S = 120.0  # an outage of a store is waited for on the nodes too


def check_shared(folder: StoragePath) -> None:
    """Let each node read a file of this process below `folder`, and this process a file of each node.

    Raises SpecError that names the node and the storage, OSError where this process itself cannot write.
    """
    signs = folder / "nodes"
    word = secrets.token_hex(16)
    write_atomic(signs / "driver", word.encode())
    try:
        for node in _start_on_nodes(signs, word):
            trouble = _trouble_on(node) or _trouble_here(signs / node.id, word)
            if trouble:
                raise SpecError(
                    f"storage {folder}: node {node.host} does not share it ({trouble}): mount the same storage on "
                    "every node and give each the right to it, or name another (--storage)"
                )
    finally:
        remove_tree(signs)


class _Node(NamedTuple):
    """A node, and the reference of its coming answer."""

    answer: Any
    host: str
    id: str


def _start_on_nodes(signs: StoragePath, word: str) -> list[_Node]:
    """Start the check on every living node."""
    leave_sign = ray.remote(num_cpus=0)(_leave_sign)
    return [
        _Node(
            leave_sign.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0
            ).remote(str(signs), node["NodeID"], word),
            node["NodeManagerAddress"],
            node["NodeID"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def _leave_sign(signs: str, node_id: str, word: str) -> str | None:
    """Check the storage on a node, and return the trouble, None if there is none."""
    folder = storage_path(signs)
    try:
        if read(folder / "driver") != word.encode():
            return "it finds other content there than the driver wrote"
        write_atomic(folder / node_id, word.encode())
    except FileNotFoundError:
        return "it does not find the driver's file there"
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _trouble_on(node: _Node) -> str | None:
    try:
        trouble: str | None = ray.get(node.answer, timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        return f"it did not answer: {' '.join(str(error).split())[-200:]}"
    return trouble


def _trouble_here(sign: StoragePath, word: str) -> str | None:
    try:
        content = read(sign)
    except FileNotFoundError:
        content = b""
    return None if content == word.encode() else "the driver does not find the node's file there"
