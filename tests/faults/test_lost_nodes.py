"""A node of a real Ray cluster of several nodes is lost while a search or a retraining runs on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import RunDir, Site, parse_spec, run_job
from mnist_ray.pipeline.stages import Listener
from mnist_ray.record.rundir import Training
from tests.faults.nodes import Nodes, real_nodes

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with real_nodes(2) as nodes:
        yield nodes


class Loses(Listener):
    """Has a node lost in the search and one in the retraining, and replaced."""

    def __init__(self, nodes: Nodes, with_notice: bool) -> None:
        self._nodes = nodes
        self._with_notice = with_notice
        self._begun: set[str] = set()
        self.ended_before: list[Training] = []  # trials, when the node of the search was lost
        self.stages_hit: list[str] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def _replace_one(self) -> None:
        self._nodes.lose_one(self._with_notice)
        self._nodes.add_one()

    def trial_ended(self, training: Training) -> None:
        self.ended_before += [] if "search" in self.stages_hit else [training]

    def trial_epoch(self, training_id: str, row: dict[str, Any]) -> None:
        self._begun.add(training_id)
        if len(self._begun) == 4 and "search" not in self.stages_hit:  # both nodes are at work, two trials ended
            self.stages_hit.append("search")
            self._replace_one()

    def retraining_epoch(self, training_id: str, role: str, row: dict[str, Any], num_epochs: int) -> None:
        if row["epoch"] == 2 and "retrain" not in self.stages_hit:
            self.stages_hit.append("retrain")
            self._replace_one()


@pytest.mark.parametrize("with_notice", [False, True], ids=["lost", "preempted"])
def test_a_node_that_goes_costs_an_epoch_and_counts_as_a_failure_without_notice(
    nodes: Nodes, tmp_path: Path, with_notice: bool
) -> None:
    spec = parse_spec(
        {
            "name": "small",
            "storage": str(tmp_path),
            "data": {"name": "digits", "num_validation": 180},
            "search": {"num_trials": 6, "num_epochs": 12, "early_stopping": None},
            "confirm": None,
            "retrain": {"num_epochs": 12, "workers": 2, "baseline": False},
            "max_failures": 0 if with_notice else 1,
        }
    )
    listener = Loses(nodes, with_notice)
    run = run_job(spec, Site(nodes.address), listener)
    assert listener.stages_hit == ["search", "retrain"], listener.notes
    assert len(listener.ended_before) >= 2
    for trial in listener.ended_before:
        assert run.training(trial.id) == trial
    check(run.trainings("search"), 12, num_failures=int(not with_notice))
    check(run.trainings("retrain"), 12, num_failures=int(not with_notice))
    assert run.stage("tested") is not None
    assert RunDir(run.path).trainings("search") == run.trainings("search")


def check(trainings: list[Training], num_epochs: int, num_failures: int) -> None:
    """All are complete, and each epoch is there once; failures are those of all together."""
    assert [training.status for training in trainings] == ["complete"] * len(trainings)
    for training in trainings:
        assert [row["epoch"] for row in training.history] == list(range(1, num_epochs + 1))
    assert sum(training.ended["num_failures"] for training in trainings if training.ended) == num_failures
