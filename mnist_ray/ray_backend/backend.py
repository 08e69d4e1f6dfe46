"""Trainings on a Ray cluster, or on this machine with a cluster of its own. Importing this module imports no Ray."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mnist_ray.config import JobSpec, Retrain, Search
from mnist_ray.pipeline.backend import Connection, RetrainingReports
from mnist_ray.pipeline.capacity import Capacity, local_capacity
from mnist_ray.pipeline.search import TrialController
from mnist_ray.pipeline.signals import heed_sigterm
from mnist_ray.pipeline.tasks import TrainingImages, TrainingTask
from mnist_ray.ray_backend.address import target_of
from mnist_ray.ray_backend.cluster import connected
from mnist_ray.record.rundir import RunDir

HANG_LIMIT_S = 120.0


@dataclass(frozen=True)
class RayBackend:
    """Runs trials under Ray Tune and retrainings under Ray Train; processes that die or hang are started again.

    address: of a Ray cluster; without it the cluster whose job this process is, else this machine alone.
    temporary_folder: for Ray's own files, where a cluster is started.
    verbose: show Ray's log.
    hang_limit_s: a process without progress for so long counts as hanging.
    """

    address: str | None = None
    temporary_folder: Path | None = None
    verbose: bool = False
    hang_limit_s: float = HANG_LIMIT_S

    @property
    def name(self) -> Literal["ray"]:
        return "ray"

    def check_early(self, spec: JobSpec, with_search: bool) -> None:
        """Raise SpecError for a spec that a new cluster of this machine could never run.

        Nothing is known yet of a cluster that is joined, nor of this machine's GPUs.
        """
        asks_for_gpus = spec.search.gpus_per_trial or (spec.retrain and spec.retrain.gpus_per_worker)
        if not target_of(self.address).is_local or asks_for_gpus:
            return
        capacity = local_capacity()
        if with_search:
            capacity.num_concurrent_trials(spec)
        capacity.check_retraining(spec)

    @contextlib.contextmanager
    def connect(self, spec: JobSpec, run: RunDir) -> Iterator[Connection]:
        """Join the cluster, or start one, for a block.

        Raises SpecError where the cluster cannot be joined, or where a node does not share the run's storage.
        """
        with connected(self.address, self.temporary_folder, self.verbose) as capacity:
            heed_sigterm()  # Ray has just taken the signal for itself
            if not target_of(self.address).is_local:
                from mnist_ray.ray_backend.shared_storage import check_shared

                check_shared(run.path)
            yield RayConnection(capacity, run.paths.ray_state, self.hang_limit_s)


@dataclass(frozen=True)
class RayConnection:
    """A cluster that this process has joined."""

    capacity: Capacity
    ray_state: Path  # the folder for files of Tune and Train
    hang_limit_s: float

    def num_concurrent_trials(self, spec: JobSpec) -> int:
        return self.capacity.num_concurrent_trials(spec)

    def check_retraining(self, spec: JobSpec) -> None:
        self.capacity.check_retraining(spec)

    def run_trials(self, controller: TrialController, images: TrainingImages, search: Search) -> None:
        from mnist_ray.ray_backend.shared_data import SharedImages
        from mnist_ray.ray_backend.tune.search import run_trials

        shared, max_failures = SharedImages.put(images), controller.spec.max_failures
        run_trials(controller, shared, search, max_failures, self.ray_state, self.hang_limit_s)

    def retrain(
        self,
        tasks: Sequence[TrainingTask],
        images: TrainingImages,
        settings: Retrain,
        max_failures: int,
        reports: RetrainingReports,
    ) -> None:
        from mnist_ray.ray_backend.shared_data import SharedImages
        from mnist_ray.ray_backend.train.trainer import retrain

        shared = SharedImages.put(images)
        retrain(tasks, shared, settings, max_failures, reports, self.ray_state, self.hang_limit_s)
