"""The retrained models of a run's current selection, with their scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mnist_ray.config import Role
from mnist_ray.metrics import Score
from mnist_ray.record.state import RunState, Training

Side = Literal["selected", "baseline"]


@dataclass(frozen=True)
class ScoredModel:
    """A retrained model with its score on the test split."""

    id: str
    seed: int
    score: Score


@dataclass(frozen=True)
class RetrainedModel:
    """A retraining of the current selection, as far as that training is."""

    role: Role
    training: Training
    scores: Mapping[str, Score]  # by test: "test", and a second test's name

    @property
    def side(self) -> str:
        """The role for people: "selected configuration", "baseline" or "selected configuration = baseline"."""
        return self.role.replace("selected", "selected configuration")

    @property
    def label(self) -> str:
        return f"{self.side}, seed {self.training.config.seed}"


def retrained_models(state: RunState) -> list[RetrainedModel]:
    """Return the selected configuration's models, then the baseline's, each in the order of the spec's seeds.

    Retrainings of an earlier selection are left out.
    """
    planned = state.selected.retrainings if state.selected else ()
    tested = state.tested.scores if state.tested else {}
    return [
        RetrainedModel(plan.role, training, {test: each.score for test, each in tested.get(plan.id, {}).items()})
        for plan in planned
        if (training := state.training(plan.id)) is not None
    ]


def scored_models(state: RunState, side: Side) -> list[ScoredModel]:
    """Return one side's models that have a test score; a selected configuration that is the baseline is "selected"."""
    return [
        ScoredModel(model.training.id, model.training.config.seed, model.scores["test"])
        for model in retrained_models(state)
        if model.role.startswith(side) and "test" in model.scores
    ]
