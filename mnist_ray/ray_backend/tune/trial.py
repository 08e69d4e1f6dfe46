"""The work of a trial's process, and what it reports to Ray Tune: plain values.

The driver imports this module too, so what trains is imported by the trial's process alone: torch takes 3 s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import tune

from mnist_ray.config import Search, StepMode
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.tasks import Failure, TrainingTask
from mnist_ray.ray_backend.heartbeat import heartbeats
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.storage.failures import StorageFailure

if TYPE_CHECKING:
    from mnist_ray.pipeline.execution import TrialEnd

TASK = "task"  # the only key of a trial's configuration
STEPS = "steps"


def run_task(config: dict[str, TrainingTask], images: SharedImages, settings: Search, mailbox: Any) -> None:
    """Run one trial in its process, which is reused for the next one, and send heartbeats to the mailbox.

    Each epoch is a report. A failure, or a storage that is full, is a last report rather than an error, so that the
    process lives on.
    """
    import torch

    from mnist_ray.pipeline.execution import run_trial
    from mnist_ray.training.distributed import Worker
    from mnist_ray.training.process import prepare_to_train

    task = config[TASK]
    prepare_to_train(settings.cpus_per_trial)
    worker = Worker(device=torch.device(device_of(settings)))

    def report(metrics: EpochMetrics, steps: StepMode | None) -> bool:
        tune.report({**metrics.columns(), STEPS: steps})
        return True  # Tune ends the process's trial itself

    with heartbeats(mailbox, task.id):
        end = run_trial(task, images.tensors(worker.device), worker, report)
        if end.failure is not None or end.storage_failure is not None:
            tune.report(end_to_report(end))


def device_of(settings: Search) -> str:
    return "cuda" if settings.gpus_per_trial else "cpu"


def end_to_report(end: "TrialEnd") -> dict[str, Any]:
    """Return the last report of a trial that failed."""
    return {"failure": end.failure, "storage_failure": end.storage_failure, STEPS: end.steps}


@dataclass(frozen=True)
class Report:
    """A report of a trial as Tune passes it on, between values of its own."""

    metrics: EpochMetrics | None  # None for a failure
    failure: Failure | None
    storage_failure: StorageFailure | None
    steps: StepMode | None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "Report":
        metrics = EpochMetrics.from_columns(result) if "epoch" in result else None
        return cls(metrics, result.get("failure"), result.get("storage_failure"), result.get(STEPS))
