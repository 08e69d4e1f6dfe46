"""Nodes go and come while a retraining runs that may have one worker or two; on a real Ray cluster."""

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from mnist_ray import Callback, JobSpec, RayBackend, RunDir, parse_spec, train_job
from mnist_ray.callbacks import TrainingInfo
from mnist_ray.config import TrainingConfig
from mnist_ray.data import load_training, pixel_statistics, stratified_split
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.tasks import TrainingImages
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.ray_backend.train import trainer as distributed
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import TrainState, fit
from tests.faults.conftest import Notes
from tests.faults.nodes import Nodes, real_nodes
from tests.faults.sabotage import In, sabotaged, sleep

NUM_VALIDATION = 180
NUM_EPOCHS = 6
STEPS_PER_EPOCH = 12  # 1,437 digits in batches of 128
STANDS_STILL_AT = 2 * STEPS_PER_EPOCH + 1  # two epochs of a process are done


class Changes(Callback):
    """Changes the cluster when an epoch is published."""

    def __init__(self, changes: dict[int, Callable[[], None]]) -> None:
        self._changes = changes

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        self._changes.pop(metrics.epoch, lambda: None)()


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with real_nodes(request.param) as nodes:
        yield nodes


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    """Without dropout, whose masks depend on who has which image."""
    monkeypatch.setattr(distributed, "RESIZE_CHECK_S", 1.0)
    return parse_spec(
        {
            "name": "elastic",
            "storage": str(tmp_path),
            "data": {"name": "digits", "num_validation": NUM_VALIDATION},
            "recipe": {"dropout": 0.0},
            "retrain": {"num_epochs": NUM_EPOCHS, "workers": [1, 2]},
            "max_failures": 1,
        }
    )


@pytest.fixture
def stand_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make rank 0 stand still after two epochs, in so many groups one after another, until its group is ended."""
    put = SharedImages.put

    def stand_still(num_groups: int) -> None:
        faults = [In(tmp_path / f"group-{number}", 0, STANDS_STILL_AT, sleep) for number in range(num_groups)]

        def with_faults(images: TrainingImages) -> SharedImages:
            return sabotaged(put(images), *faults, saves_every_epoch=True)

        monkeypatch.setattr(SharedImages, "put", with_faults)

    return stand_still


@pytest.mark.parametrize("nodes", [1], indirect=True)
def test_retraining_grows_with_a_new_node(
    nodes: Nodes, spec: JobSpec, stand_still: Callable[[int], None], notes: Notes
) -> None:
    stand_still(1)

    def add_one() -> None:
        nodes.add_one(wait=True)
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True))  # otherwise within 20 s

    run = train_job(spec, RayBackend(nodes.address), [Changes({2: add_one})])
    assert notes() == sizes(1, 2)
    check(run, num_failures=0)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2], indirect=True)
@pytest.mark.parametrize("with_notice", [False, True], ids=["lost", "preempted"])
def test_retraining_survives_a_lost_node(
    nodes: Nodes, spec: JobSpec, stand_still: Callable[[int], None], notes: Notes, with_notice: bool
) -> None:
    stand_still(2)
    changes = Changes({2: partial(nodes.lose_one, with_notice), 4: nodes.add_one})
    run = train_job(spec, RayBackend(nodes.address), [changes])
    ended, *others = notes()
    assert ended.startswith("the group of workers was ended: rank ")
    assert ("preempted" in ended) == with_notice
    assert others == sizes(1, 2)
    check(run, num_failures=int(not with_notice))
    print(f"gone: {seconds_until(run, 3):.0f} s to the next epoch; come: {seconds_until(run, 5):.0f} s")


def seconds_until(run: RunDir, epoch: int) -> float:
    """Return the time from the report of the epoch before it."""
    (training,) = run.state.trainings("retrain")
    before, after = (datetime.fromisoformat(at) for at in training.reported_at[epoch - 2 : epoch])
    return (after - before).total_seconds()


def sizes(*counts: int) -> list[str]:
    return [f"the retraining runs on {count} of 1 to 2 workers" for count in counts]


def check(run: RunDir, num_failures: int) -> None:
    """As trained by one worker that nothing happened to, each epoch once, ended by two workers."""
    (training,) = run.state.trainings("retrain")
    assert training.status == "complete"
    assert training.ended is not None
    assert (training.ended.workers, training.ended.num_failures) == (2, num_failures)
    expected = undisturbed(training.config)
    assert [metrics.epoch for metrics in training.history] == [metrics.epoch for metrics in expected]
    for metrics, other in zip(training.history, expected, strict=True):
        assert metrics.train.num_examples == other.train.num_examples == 1437
        assert metrics.train.loss == pytest.approx(other.train.loss, rel=1e-2)  # float32


def undisturbed(config: TrainingConfig) -> list[EpochMetrics]:
    """Return the epochs of one worker."""
    examples = load_training("digits", Path())
    statistics = pixel_statistics(examples.take(stratified_split(examples.labels, NUM_VALIDATION, 0).train).images)
    data = TrainingData(Examples.of(examples, torch.device("cpu")), None, statistics)
    state = TrainState.initial(config, statistics)
    for _ in fit(state, data, config):
        pass
    return state.history
