"""What a process died of: said in one line, and made bearable for Ray Tune."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

OUT_OF_MEMORY = "its process was killed because the node ran out of memory"


@contextlib.contextmanager
def deaths_are_failures_of_one_trial() -> Iterator[None]:
    """Let Tune take the death of a trial's process, whatever the reason, for one failure of that trial.

    Two things of Ray 2.60 are in the way (air/execution/_internal/actor_manager.py, _actor_task_failed):

    - A kill by Ray's memory monitor raises OutOfMemoryError, which is no RayActorError, for the task that ran in the
      process, and what is neither that nor a RayTaskError ends the whole search. Starting the search again would
      cost every other trial in flight its epoch and its count of failures.
    - A process that dies between two trials is noticed when the second one is handed to it. Tune hears of that death
      twice, and takes the second time, when the trial waits for its new start already, for its end; and it goes on
      believing that the trial is being handed over, and gives it no other process.
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
        if isinstance(exception, RayActorError):
            _tell_once(tracked_actor_task)
        super()._actor_task_failed(tracked_actor_task, exception)


def _tell_once(task: Any) -> None:
    """Of an actor that died while a trial was handed to it: the actor's own callback tells of it."""
    actor = task._tracked_actor
    controller = getattr(actor._on_error, "__self__", None)  # Tune's, whose method the callback is
    if controller is None:
        return
    trial = controller._actor_to_trial.get(actor)
    if trial in controller._resetting_trials:
        controller._resetting_trials.remove(trial)
        task._on_error = None


def why_it_died(errors: str) -> str:
    """errors: the file in which Tune collects a trial's errors -> the last one in a line."""
    _, _, last = errors.rpartition("Failure # ")[2].partition("\n")
    reason = " ".join(last.split())[:300]
    return reason if reason.startswith(OUT_OF_MEMORY) else f"its process died: {reason}"
