"""The importance of each hyperparameter in a search, with intervals."""

import copy
import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.config import Search
from mnist_ray.record.state import Training
from mnist_ray.record.study import study_of
from mnist_ray.report.analysis.scores import rung_epoch, score_at

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


def importances(search: Search, trials: Sequence[Training]) -> Importances:
    """Compute PED-ANOVA (Watanabe et al. 2023), by Optuna, of all trials at the epoch that all of them reach.

    Complete trials alone would be a sample of the best. Intervals are percentiles of the bootstrap over trials (Efron
    1979), which has a fixed seed, so that the same record gives the same figures.
    """
    epoch = rung_epoch(search)
    scored = [
        (trial, score)
        for trial in study_of(search, trials).get_trials(deepcopy=False)
        if (score := score_at(search, trials[trial.number], epoch)) is not None
    ]
    names = [key for key, dimension in search.space.items() if len(set(dimension.ends)) > 1]
    if len(scored) < FEWEST_PER_DIMENSION * max(len(names), 1) or len({score for _, score in scored}) == 1:
        return Importances(epoch, len(scored), [])
    as_complete = [
        optuna.trial.create_trial(
            state=TrialState.COMPLETE, params=trial.params, distributions=trial.distributions, value=score
        )
        for trial, score in scored
    ]
    whole = _evaluate(search, as_complete, names)
    generator = np.random.default_rng(0)
    resampled = [
        _evaluate(search, [as_complete[index] for index in generator.integers(len(scored), size=len(scored))], names)
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


def _evaluate(search: Search, trials: list[FrozenTrial], names: list[str]) -> dict[str, float]:
    empty = study_of(search, [])
    study = _Listed(empty.study_name, empty._storage)
    study.trials_given = [_numbered(trial, number) for number, trial in enumerate(trials)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, that the evaluator is experimental
        found = PedAnovaImportanceEvaluator().evaluate(study, params=names)
    total = sum(found.values())
    return {name: float(found.get(name, 0.0)) / total if total else 0.0 for name in names}
