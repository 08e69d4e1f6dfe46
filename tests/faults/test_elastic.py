"""Nodes go and come while a retraining runs that may have one worker or two; on a real Ray cluster."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from mnist_ray import JobSpec, RunDir, Site, parse_spec, train_job
from mnist_ray.config import TrainingConfig
from mnist_ray.data import load_training, pixel_statistics, stratified_split
from mnist_ray.pipeline.stages import Listener
from mnist_ray.ray_backend.shared_data import SharedData
from mnist_ray.ray_backend.train import trainer as distributed
from mnist_ray.training.loop import Examples, TrainingData, TrainState, fit
from tests.faults.nodes import Nodes, real_nodes
from tests.faults.sabotage import In, sabotaged, sleep

NUM_VALIDATION = 180
NUM_EPOCHS = 6
STEPS_PER_EPOCH = 12  # 1,437 digits in batches of 128
STANDS_STILL_AT = 2 * STEPS_PER_EPOCH + 1  # two epochs of a process are done


class Changes(Listener):
    """Changes the cluster when an epoch is first heard of."""

    def __init__(self, changes: dict[int, Callable[[], None]]) -> None:
        self._changes = changes
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def retraining_epoch(self, training_id: str, role: str, row: dict[str, Any], num_epochs: int) -> None:
        self._changes.pop(row["epoch"], lambda: None)()


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
    put = SharedData.put

    def stand_still(num_groups: int) -> None:
        faults = [In(tmp_path / f"group-{number}", 0, STANDS_STILL_AT, sleep) for number in range(num_groups)]

        def with_faults(*examples: Any) -> SharedData:
            return replace(sabotaged(put(*examples), *faults), saves_every_epoch=True)

        monkeypatch.setattr(SharedData, "put", with_faults)

    return stand_still


@pytest.mark.parametrize("nodes", [1], indirect=True)
def test_a_retraining_begins_with_what_is_there_and_grows_when_a_node_comes(
    nodes: Nodes, spec: JobSpec, stand_still: Callable[[int], None]
) -> None:
    stand_still(1)

    def add_one() -> None:
        nodes.add_one(wait=True)
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True))  # otherwise within 20 s

    listener = Changes({2: add_one})
    run = train_job(spec, Site(nodes.address), listener)
    assert listener.notes[1:] == sizes(1, 2)
    check(run, num_failures=0)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2], indirect=True)
@pytest.mark.parametrize("with_notice", [False, True], ids=["lost", "preempted"])
def test_a_retraining_goes_on_without_a_node_that_goes_and_grows_again(
    nodes: Nodes, spec: JobSpec, stand_still: Callable[[int], None], with_notice: bool
) -> None:
    stand_still(2)
    listener = Changes({2: partial(nodes.lose_one, with_notice), 4: nodes.add_one})
    run = train_job(spec, Site(nodes.address), listener)
    _, ended, *others = listener.notes
    assert ended.startswith("the group of workers was ended: rank ")
    assert ("preempted" in ended) == with_notice
    assert others == sizes(1, 2)
    check(run, num_failures=int(not with_notice))
    print(f"gone: {seconds_until(run, 3):.0f} s to the next epoch; come: {seconds_until(run, 5):.0f} s")


def seconds_until(run: RunDir, epoch: int) -> float:
    """From the end of the epoch before it, as the driver heard of both."""
    (training,) = run.trainings("retrain")
    before, after = (datetime.fromisoformat(row["at"]) for row in training.history[epoch - 2 : epoch])
    return (after - before).total_seconds()


def sizes(*counts: int) -> list[str]:
    return [f"the retraining runs on {count} of 1 to 2 workers" for count in counts]


def check(run: RunDir, num_failures: int) -> None:
    """As trained by one worker that nothing happened to, each epoch once, ended by two workers."""
    (training,) = run.trainings("retrain")
    assert training.status == "complete"
    assert training.ended is not None
    assert (training.ended["workers"], training.ended["num_failures"]) == (2, num_failures)
    expected = undisturbed(training.config)
    assert [row["epoch"] for row in training.history] == [row["epoch"] for row in expected]
    for row, other in zip(training.history, expected, strict=True):
        assert row["train_examples"] == other["train_examples"] == 1437
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-2)  # float32


def undisturbed(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one worker."""
    examples = load_training("digits", Path())
    statistics = pixel_statistics(examples.take(stratified_split(examples.labels, NUM_VALIDATION, 0).train).images)
    data = TrainingData(Examples.of(examples, torch.device("cpu")), None, statistics)
    state = TrainState.initial(TrainingConfig(**config), statistics)
    for _ in fit(state, data, TrainingConfig(**config)):
        pass
    return state.history
