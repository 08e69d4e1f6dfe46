"""The importance of each hyperparameter in a search, with intervals."""

import copy
import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.config import JobSpec
from mnist_ray.record.state import Training
from mnist_ray.record.study import always_suggested, study_of
from mnist_ray.report.analysis.scores import score_at

FEWEST_PER_DIMENSION = 10  # trials; with fewer the importances of one search and the next have little in common
NUM_RESAMPLINGS = 100


@dataclass(frozen=True)
class Importance:
    """A hyperparameter's share of what the score depends on, from 0 to 1, with a 95 % interval."""

    name: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Importances:
    """The hyperparameters' shares in a search, most important first."""

    epoch: int  # after which the score was taken; all trials reach this epoch
    num_trials: int
    shares: list[Importance]  # empty where there are too few trials to say

    @property
    def sentence(self) -> str:
        if not self.shares:
            return f"Too few trials to say which hyperparameter matters ({self.num_trials} with a score)."
        first, *others = self.shares
        if not others:
            return f"{first.name} is the only hyperparameter that was searched."
        if first.low <= max(each.high for each in others):
            return f"Which hyperparameter matters most cannot be told from {self.num_trials} trials: intervals overlap."
        return (
            f"{first.name} matters most: {100 * first.share:.0f} % ({100 * first.low:.0f} to {100 * first.high:.0f} %)."
        )


def importances(spec: JobSpec, trials: Sequence[Training], epoch: int) -> Importances:
    """Compute PED-ANOVA (Watanabe et al. 2023), by Optuna, of all trials at an epoch that all of them reach.

    Complete trials alone would be a sample of the best. Intervals are percentiles of the bootstrap over trials (Efron
    1979), which has a fixed seed, so that the same record gives the same figures. Trials that are no point of the
    space are left out; of a hyperparameter that can be off it is asked whether it was.
    """
    space = always_suggested(spec.search)
    scored = [
        (trial, score)
        for trial in study_of(spec, trials).get_trials(deepcopy=False)
        if trial.params and (score := score_at(spec.search, trials[trial.number], epoch)) is not None
    ]
    names = [key for key, distribution in space.items() if not distribution.single()]
    if len(scored) < FEWEST_PER_DIMENSION * max(len(names), 1) or len({score for _, score in scored}) == 1:
        return Importances(epoch, len(scored), [])
    as_complete = [
        optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            params={key: trial.params[key] for key in space},
            distributions=space,
            value=score,
        )
        for trial, score in scored
    ]
    whole = _evaluate(spec, as_complete, names)
    generator = np.random.default_rng(0)
    resampled = [
        _evaluate(spec, [as_complete[index] for index in generator.integers(len(scored), size=len(scored))], names)
        for _ in range(NUM_RESAMPLINGS)
    ]
    shares = [
        Importance(
            name, whole[name], *(float(np.percentile([each[name] for each in resampled], at)) for at in (2.5, 97.5))
        )
        for name in names
    ]
    return Importances(epoch, len(scored), sorted(shares, key=lambda each: -each.share))


class _Listed(optuna.Study):
    """A study of given trials; adding each trial to a storage takes five times as long as evaluating them all."""

    trials_given: list[FrozenTrial]

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self.trials_given


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    """Copy a trial under its own id: the evaluator tells trials apart by id, and the bootstrap draws some again."""
    numbered = copy.copy(trial)
    numbered.number = numbered._trial_id = number
    return numbered


def _evaluate(spec: JobSpec, trials: list[FrozenTrial], names: list[str]) -> dict[str, float]:
    empty = study_of(spec, [])
    study = _Listed(empty.study_name, empty._storage)
    study.trials_given = [_numbered(trial, number) for number, trial in enumerate(trials)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, that the evaluator is experimental
        found = PedAnovaImportanceEvaluator().evaluate(study, params=names)
    total = sum(found.values())
    return {name: float(found.get(name, 0.0)) / total if total else 0.0 for name in names}
