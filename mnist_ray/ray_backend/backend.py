"""Trainings on a Ray cluster, or on this machine with a cluster of its own. Importing this module imports no Ray."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from mnist_ray.config import JobSpec, Retrain, Search, Stage
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
            yield RayConnection(
                spec, capacity, target_of(self.address).is_local, run.paths.ray_state, self.hang_limit_s
            )


class RayConnection:
    """A cluster that this process has joined."""

    def __init__(self, spec: JobSpec, capacity: Capacity, is_own: bool, ray_state: Path, hang_limit_s: float) -> None:
        """is_own: started by this process, on this machine. ray_state: the folder for files of Tune and Train."""
        from mnist_ray.ray_backend.prestart import Prestart

        self.spec = spec
        self.capacity = capacity
        self.ray_state = ray_state
        self.hang_limit_s = hang_limit_s
        self._prestart = Prestart() if is_own else None

    def num_concurrent_trials(self, spec: JobSpec) -> int:
        return self.capacity.num_concurrent_trials(spec)

    def check_retraining(self, spec: JobSpec) -> None:
        self.capacity.check_retraining(spec)

    def num_concurrent_retrainings(self, retrain: Retrain, num_open: int) -> int:
        return self.capacity.num_concurrent_retrainings(retrain, num_open)

    def prepare(self, stage: Stage) -> None:
        """Start the processes of a stage on a cluster of this process, and import what the driver needs for it."""
        retrain = self.spec.retrain
        if stage != "retrain":
            if self._prestart is not None:
                self._prestart.trials(self.capacity.num_concurrent_trials(self.spec))
        elif retrain is not None:
            _import_in_background("mnist_ray.ray_backend.train.trainer")
            if self._prestart is not None:
                num_groups = self.capacity.num_concurrent_retrainings(retrain, retrain.num_trainings)
                self._prestart.groups(num_groups, retrain.fewest_workers)

    def run_trials(self, controller: TrialController, images: TrainingImages, search: Search) -> None:
        from mnist_ray.ray_backend.shared_data import SharedImages
        from mnist_ray.ray_backend.tune.search import run_trials

        self._wait_for_processes()
        next_stage: Stage = "final" if controller.source.stage == "search" and self.spec.final else "retrain"
        run_trials(
            controller,
            SharedImages.put(images),
            search,
            controller.spec.max_failures,
            self.ray_state,
            self.hang_limit_s,
            when_nearly_over=lambda: self.prepare(next_stage),
        )

    def retrain(
        self,
        tasks: Sequence[TrainingTask],
        images: TrainingImages,
        settings: Retrain,
        num_concurrent: int,
        max_failures: int,
        reports: RetrainingReports,
    ) -> None:
        from mnist_ray.ray_backend.shared_data import SharedImages
        from mnist_ray.ray_backend.train.trainer import GroupSettings, retrain

        shared = SharedImages.put(images)
        groups = GroupSettings(shared, settings, max_failures, self.ray_state, self.hang_limit_s)
        _import_in_background("mnist_ray.pipeline.final_test")
        self._wait_for_processes()
        retrain(tasks, num_concurrent, groups, reports)

    def _wait_for_processes(self) -> None:
        if self._prestart is not None:
            self._prestart.wait()


def _import_in_background(module: str) -> None:
    """Import what is needed soon, while this process waits for others."""
    threading.Thread(target=import_module, args=[module], daemon=True).start()
