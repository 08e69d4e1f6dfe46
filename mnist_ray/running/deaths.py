"""What a process died of: said in one line, and made bearable for Ray Tune."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

OUT_OF_MEMORY = "its process was killed because the node ran out of memory"


@contextlib.contextmanager
def out_of_memory_is_a_failure() -> Iterator[None]:
    """Let Tune take a kill by Ray's memory monitor for the death of one process, which it is.

    Ray 2.60 raises OutOfMemoryError, which is no RayActorError, for the task that ran in it, and what is neither that
    nor a RayTaskError ends the whole search (air/execution/_internal/actor_manager.py, _actor_task_failed). Starting
    the search again instead would cost every other trial in flight its epoch and its count of failures.
    """
    tune_controller.RayActorManager = _ActorManager  # type: ignore[attr-defined]
    try:
        yield
    finally:
        tune_controller.RayActorManager = RayActorManager  # type: ignore[attr-defined]


class _ActorManager(RayActorManager):
    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"{OUT_OF_MEMORY}: {exception}")
        super()._actor_task_failed(tracked_actor_task, exception)


def why_it_died(errors: str) -> str:
    """errors: the file in which Tune collects a trial's errors -> the last one in a line."""
    _, _, last = errors.rpartition("Failure # ")[2].partition("\n")
    reason = " ".join(last.split())[:300]
    return reason if reason.startswith(OUT_OF_MEMORY) else f"its process died: {reason}"
