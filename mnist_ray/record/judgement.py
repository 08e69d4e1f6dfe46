"""The judgement of a run by its rule: the selected configuration against the baseline, from the models' test logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from mnist_ray.config import DecidedBy, Report
from mnist_ray.record.models import Side, retrained_models, scored_models
from mnist_ray.record.predictions import Predictions, ensemble, predictions
from mnist_ray.record.rundir import RunDir
from mnist_ray.statistics import Difference, Outcome, difference, outcome

Kind = Outcome | Literal["same recipe", "not compared", "not tested yet"]


@dataclass(frozen=True)
class JudgedQuantity:
    """One quantity's difference, the selected configuration's less the baseline's, and what it says by itself."""

    difference: Difference
    bound: float  # the largest difference that does not matter
    outcome: Outcome


@dataclass(frozen=True)
class Judgement:
    """The outcome of a comparison, with the evidence, or the reason why there is none."""

    kind: Kind
    decided_by: DecidedBy
    reason: str | None = None  # where nothing was compared
    quantities: dict[DecidedBy, JudgedQuantity] = field(default_factory=dict)  # both where something was compared


@dataclass(frozen=True)
class Ensemble:
    """One side's tested models, which answer together."""

    side: str  # for people, as RetrainedModel has it
    training_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    predictions: Predictions

    @property
    def label(self) -> str:
        return f"{self.side}, ensemble"


def judge_run(run: RunDir) -> Judgement:
    """Judge a run as far as it is. Raises CorruptFileError."""
    state = run.state
    assert state.started is not None
    decided_by = state.started.spec.decided_by
    if state.tested is None or state.selected is None:
        return Judgement("not tested yet", decided_by, "the test split has not been scored")
    if state.selected.training is None:
        return Judgement("not compared", decided_by, "nothing was searched; only the baseline was trained and tested")
    if any(plan.role == "selected = baseline" for plan in state.selected.retrainings):
        return Judgement("same recipe", decided_by, "validation found nothing better than the baseline")
    if not scored_models(state, "selected"):
        return Judgement("not compared", decided_by, "no model of the selected configuration was tested")
    if not scored_models(state, "baseline"):
        return Judgement("not compared", decided_by, "no model of the baseline was tested")
    selected, baseline = (predictions_of(run, side) for side in ("selected", "baseline"))
    if not selected or not baseline:
        return Judgement("not compared", decided_by, "the record lacks the models' answers on the test images")
    return judge(selected, baseline, state.started.spec.report, decided_by)


def judge(
    first: Sequence[Predictions], second: Sequence[Predictions], rule: Report, decided_by: DecidedBy
) -> Judgement:
    """Judge the models of a first configuration against those of a second; all answered on the same images."""
    sides = (first, second)
    losses, other_losses = (np.stack([model.losses for model in side]) for side in sides)
    rights, other_rights = (np.stack([model.is_right for model in side]).astype(np.float64) for side in sides)
    of_loss, of_accuracy = difference(losses, other_losses), difference(rights, other_rights, step=1.0)
    loss_bound, accuracy_bound = rule.equivalence_loss, rule.equivalence_points / 100
    quantities: dict[DecidedBy, JudgedQuantity] = {
        "test_loss": JudgedQuantity(of_loss, loss_bound, outcome(of_loss, loss_bound, lower_is_better=True)),
        "test_accuracy": JudgedQuantity(
            of_accuracy, accuracy_bound, outcome(of_accuracy, accuracy_bound, lower_is_better=False)
        ),
    }
    return Judgement(quantities[decided_by].outcome, decided_by, quantities=quantities)


def predictions_of(run: RunDir, side: Side) -> list[Predictions]:
    """Return the test predictions of one side's models, in the order of seeds. Raises CorruptFileError."""
    found = (predictions(run, model.id) for model in scored_models(run.state, side))
    return [each for each in found if each is not None]


def ensembles(run: RunDir) -> list[Ensemble]:
    """Return an ensemble for each side that has two or more tested models. Raises CorruptFileError."""
    return [found for side in get_args(Side) if (found := _ensemble(run, side))]


def _ensemble(run: RunDir, side: Side) -> Ensemble | None:
    models = [
        (model.side, model.training, answers)
        for model in retrained_models(run.state)
        if model.role.startswith(side) and (answers := predictions(run, model.training.id))
    ]
    if len(models) < 2:
        return None
    return Ensemble(
        models[0][0],
        tuple(training.id for _, training, _ in models),
        tuple(training.config.seed for _, training, _ in models),
        ensemble([answers for _, _, answers in models]),
    )
