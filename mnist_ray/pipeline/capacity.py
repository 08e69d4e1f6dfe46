"""What a cluster has room for, and whether a job spec fits into it."""

import math
from dataclasses import dataclass

from mnist_ray.config import JobSpec, Retrain
from mnist_ray.errors import SpecError


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

    def num_concurrent_retrainings(self, retrain: Retrain, num_open: int) -> int:
        """As many retrainings side by side as fit with their fewest workers, within the spec's limit; at least 1."""
        room = [self.cpus // (retrain.fewest_workers * retrain.cpus_per_worker), num_open]
        if retrain.gpus_per_worker:
            room.append(self.gpus // (retrain.fewest_workers * retrain.gpus_per_worker))
        if retrain.concurrent is not None:
            room.append(retrain.concurrent)
        return max(1, min(room))

    def check_retraining(self, spec: JobSpec) -> None:
        """Raises SpecError where not even the fewest workers of a retraining can ever run at once."""
        retrain, most = spec.retrain, self._grown(spec)
        if retrain is None:
            return
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
                "the cluster has no CPUs for trainings: add nodes, or tell how many CPUs its autoscaler may start "
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
