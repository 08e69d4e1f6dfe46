"""What runs in Ray Train's controller: it sends the driver its handle, the size of each group, and how groups end.

The controller imports this module, so the module imports no torch, which takes 3 s.
"""

from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train import UserCallback

from mnist_ray.ray_backend.compat import OUT_OF_MEMORY, cause_of, start_callback
from mnist_ray.ray_backend.heartbeat import packed
from mnist_ray.ray_backend.train.messages import ControllerStarted, GroupEnded, GroupStarting, name_of


class FailureCallback(UserCallback):
    """Sends the driver why a group was ended."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: cause_of(error) for rank, error in worker_exceptions.items()}
        rank, cause = min(causes.items(), key=lambda item: _distance_from_cause(item[1]))
        is_preemption = any(isinstance(error, RayActorError) and error.preempted for error in causes.values())
        ended = GroupEnded(f"{name_of(rank)}: {in_one_line(cause, is_preemption)}", is_preemption)
        self._mailbox.put_about_group.remote(packed(ended))


def starts_reported_to(mailbox: Any) -> Any:
    """Return a callback that sends the driver the controller's handle and the size of each new group."""

    def send_handle(run_id: str) -> None:
        actor = ray.get_runtime_context().current_actor
        mailbox.put.remote(packed(ControllerStarted(actor, run_id)))

    def send_size(num_workers: int) -> None:
        mailbox.put_about_group.remote(packed(GroupStarting(num_workers)))

    return start_callback(send_handle, send_size)


def _distance_from_cause(error: Exception) -> int:
    """Rank errors by how far they are from the cause: ranks that live on fail because another one has died."""
    return 0 if isinstance(error, OutOfMemoryError) else 1 if isinstance(error, RayActorError) else 2


def in_one_line(error: Exception, is_preemption: bool = False) -> str:
    """Return an error of Ray in one line."""
    if isinstance(error, RayTaskError):  # its text is a traceback, the cause the last line
        return str(error).strip().splitlines()[-1][:300]
    text = " ".join(str(error).split())[:300]
    if is_preemption:
        return f"its node was preempted, which does not count as a failure: {text}"
    if isinstance(error, OutOfMemoryError):
        return f"{OUT_OF_MEMORY}: {text}"
    if isinstance(error, RayActorError):
        return f"its process died: {text}"
    return f"{type(error).__name__}: {text}"
