"""A node of a real Ray cluster of several nodes is lost while a search or a retraining runs on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray import Callback, RayBackend, RunDir, parse_spec, run_job
from mnist_ray.callbacks import TrainingInfo, TrainingOutcome
from mnist_ray.config import Stage
from mnist_ray.metrics import EpochMetrics
from mnist_ray.record.state import Training
from tests.faults.nodes import Nodes, real_nodes

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with real_nodes(2) as nodes:
        yield nodes


class LosesNodes(Callback):
    """Has a node lost in the search and one in the retraining, and replaced."""

    def __init__(self, nodes: Nodes, with_notice: bool) -> None:
        self._nodes = nodes
        self._with_notice = with_notice
        self._begun: set[str] = set()
        self.ended_before: dict[str, TrainingOutcome] = {}  # trials, when the node of the search was lost
        self.stages_hit: list[str] = []

    def _replace_one(self, stage: Stage) -> None:
        self.stages_hit.append(stage)
        self._nodes.lose_one(self._with_notice)
        self._nodes.add_one()

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        if "search" not in self.stages_hit:
            self.ended_before[training.id] = outcome

    def on_epoch(self, training: TrainingInfo, metrics: EpochMetrics) -> None:
        if training.stage == "search":
            self._begun.add(training.id)
            is_due = len(self._begun) == 4  # both nodes are at work, two trials ended
        else:
            is_due = metrics.epoch == 2
        if is_due and training.stage not in self.stages_hit:
            self._replace_one(training.stage)


@pytest.mark.parametrize("with_notice", [False, True], ids=["lost", "preempted"])
def test_lost_node_costs_an_epoch(nodes: Nodes, tmp_path: Path, with_notice: bool) -> None:
    spec = parse_spec(
        {
            "name": "small",
            "storage": str(tmp_path),
            "data": {"name": "digits", "num_validation": 180},
            "search": {"num_trials": 6, "num_epochs": 12, "early_stopping": None},
            "final": None,
            "retrain": {"num_epochs": 12, "workers": 2, "baseline": False},
            "max_failures": 0 if with_notice else 1,
        }
    )
    loses = LosesNodes(nodes, with_notice)
    run = run_job(spec, RayBackend(nodes.address), [loses])
    assert loses.stages_hit == ["search", "retrain"]
    assert len(loses.ended_before) >= 2
    for training_id, outcome in loses.ended_before.items():
        trial = run.state.training(training_id)
        assert trial is not None and trial.history[-1] == outcome.last
        assert (trial.status, trial.epochs_done) == (outcome.status, outcome.epochs_done)
    check(run.state.trainings("search"), 12, num_failures=int(not with_notice))
    check(run.state.trainings("retrain"), 12, num_failures=int(not with_notice))
    assert run.state.tested is not None
    assert RunDir(run.path).state.trainings("search") == run.state.trainings("search")


def check(trainings: list[Training], num_epochs: int, num_failures: int) -> None:
    """Check that all are complete with each epoch once, and their failures in all."""
    assert [training.status for training in trainings] == ["complete"] * len(trainings)
    for training in trainings:
        assert [metrics.epoch for metrics in training.history] == list(range(1, num_epochs + 1))
    assert sum(training.ended.num_failures for training in trainings if training.ended) == num_failures
