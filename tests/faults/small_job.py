"""A whole job in one process and about a second: Ray's part is played by plain loops, everything else is real.

Processes are forked from one that has imported everything, so that hundreds of them can be killed in a minute.
The same kills with real Ray: `make chaos`.
"""

import os
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.tune.schedulers import TrialScheduler

from mnist_ray import JobSpec, RunDir, data, parse_spec, run_job
from mnist_ray.config import Retrain, TrainingConfig
from mnist_ray.pipeline import job
from mnist_ray.pipeline.provenance import processor
from mnist_ray.ray_backend import shared_data
from mnist_ray.ray_backend.cluster import Capacity
from mnist_ray.ray_backend.heartbeat import TrialWatch
from mnist_ray.ray_backend.train import trainer as distributed
from mnist_ray.ray_backend.train import worker as ranks
from mnist_ray.ray_backend.train.messages import Retraining
from mnist_ray.ray_backend.tune import search as tuning
from mnist_ray.record.exports import write_views
from mnist_ray.storage.files import FAILPOINT, StoragePath, storage_path
from mnist_ray.training.checkpoint import Checkpoints, SavedState, fit_resumably
from mnist_ray.training.loop import TrainingData, TrainState, Worker

NUM_IMAGES = 90


def small_spec(storage: StoragePath | str, **changes: Any) -> JobSpec:
    return parse_spec(
        {
            "name": "small",
            "storage": str(storage),
            "data": {"name": "digits", "num_validation": 30},
            "search": {
                "num_trials": 3,
                "num_epochs": 2,
                "early_stopping": {"grace_epochs": 1, "reduction_factor": 2},
                "space": {
                    "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
                    "dropout": {"low": 0, "high": 0.5},
                },
            },
            "confirm": {"top_k": 2, "seeds": 1},
            "retrain": {"num_epochs": 2, "workers": 1},
            **changes,
        }
    )


class LocalData:
    """Stands for SharedData: what Ray's object store would hand to each process."""

    def __init__(self, training: TrainingData) -> None:
        self._training = training

    @classmethod
    def put(cls, train: Any, validation: Any, statistics: Any) -> "LocalData":
        examples = [part and data_of(part) for part in (train, validation)]
        return cls(TrainingData(examples[0], examples[1], statistics))

    def get(self, device: torch.device) -> TrainingData:
        return self._training


def data_of(part: data.LabelledImages) -> Any:
    from mnist_ray.training.loop import Examples

    return Examples.of(part, torch.device("cpu"))


class LocalTrial:
    """As much of a Tune trial as the ledger and early stopping look at."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.trial_id = config["training_id"]
        self.num_failures = 0
        self.last_result: dict[str, Any] = {}


class NobodyHangs(TrialWatch):
    """Stands for the watch over trials' processes."""

    def end_hanging(self, in_flight: Collection[str]) -> dict[str, str]:
        return {}


def run_one_by_one(ledger: Any, shared: LocalData, num_open: int, num_concurrent: int) -> None:
    """Stands for tuning._run_trials: Tune's order of things, one trial at a time."""
    while values := ledger.next_trial():
        trial = LocalTrial(values)
        ledger.scheduler.on_trial_add(None, trial)
        config = TrainingConfig(**values["config"])
        checkpoints = Checkpoints.of_generation(storage_path(values["checkpoints"]), values["generation"], config)
        for row in rows(fit_resumably(config, shared.get(torch.device("cpu")), checkpoints)):
            action = ledger.scheduler.on_trial_result(None, trial, row)
            trial.last_result = row
            ledger.on_trial_result(0, [], trial, row)
            ledger.on_step_end(0, [])
            if action == TrialScheduler.STOP:
                break
        ledger.on_trial_complete(0, [], trial)
        ledger.on_step_end(0, [])


def rows(states: Iterator[Any]) -> Iterator[dict[str, Any]]:
    num_seen = 0
    for state in states:
        yield from state.history[num_seen:]
        num_seen = len(state.history)


def retrain_here(
    trainings: list[Retraining],
    shared: LocalData,
    settings: Retrain,
    max_failures: int,
    ray_state: Path,
    receive: Callable[..., None],
    *more: Any,
) -> None:
    """Stands for distributed.retrain: a group of one worker."""
    for training in trainings:
        receive(ranks.train_one(training, shared.get(torch.device("cpu")), Worker(), receive))


def save_always(checkpoints: Checkpoints, state: Any) -> None:
    checkpoints.save(SavedState.of(state))


@contextmanager
def no_cluster(*arguments: Any) -> Iterator[Capacity]:
    yield Capacity(1, 0, (processor(),))


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Put the plain loops in Ray's place, and few images in the place of all digits."""
    whole, test = (read("digits", Path()) for read in (data.load_training, data.load_test))
    few = np.arange(NUM_IMAGES)
    patch.setattr(data, "load_training", lambda name, folder: whole.take(few))
    patch.setattr(data, "load_test", lambda name, folder: test.take(few))
    patch.setattr(tuning, "_run_trials", run_one_by_one)
    patch.setattr(tuning, "TrialWatch", NobodyHangs)
    patch.setattr(distributed, "retrain", retrain_here)
    patch.setattr(shared_data, "SharedData", LocalData)
    patch.setattr(job, "connected", no_cluster)
    patch.setattr(Checkpoints, "save_if_due", save_always)


def warm_up(folder: Path) -> None:
    """Import what a job imports late, so that forked processes need not: everything but training itself, after which
    torch refuses to be forked.
    """
    config = TrainingConfig(num_epochs=1)
    TrainState.initial(config, data.PixelStatistics(0.1, 0.3))
    run = RunDir(folder / "warm")
    run.record_stage("started", spec=small_spec(folder).model_dump(mode="json"))
    write_views(run)


def in_a_fork(call: Callable[[], object]) -> int:
    """Call in a child; returns its exit code, negative for the signal that killed it, 1 where it raised."""
    return in_forks(call)[0]


def in_forks(*calls: Callable[[], object]) -> list[int]:
    """Call all at once, each in a child of its own."""
    children = [_fork(call) for call in calls]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(call: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def run_in_a_fork(spec: JobSpec, failpoint: str = "") -> int:
    def call() -> None:
        os.environ[FAILPOINT] = failpoint
        run_job(spec)

    return in_a_fork(call)


def essence(path: StoragePath) -> dict[str, Any]:
    """What must not depend on kills: everything on record but times, sessions and machines."""
    run = RunDir(path)
    trainings = {
        training.id: {
            "config": training.config,
            "status": training.status,
            "history": [{key: value for key, value in row.items() if key not in TIMES} for row in training.history],
            "model": (training.ended or {}).get("model"),
        }
        for stage in ("search", "confirm", "retrain")
        for training in run.trainings(stage)
    }
    chosen, tested = run.stage("chosen") or {}, run.stage("tested") or {}
    return {"trainings": trainings, "choice": chosen.get("training"), "tested": tested.get("scores")}


TIMES = ("at", "elapsed_s")
