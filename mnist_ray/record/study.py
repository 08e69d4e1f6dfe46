"""The Optuna study of a search: what to try next, and what each trial came to."""

import hashlib
import warnings
from collections.abc import Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mnist_ray.config import Choices, JobSpec, Search, is_whole
from mnist_ray.record.shortlist import ShortlistStorage
from mnist_ray.record.state import Training
from mnist_ray.storage.files import StoragePath, replace_atomic

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,  # by the time budget; the attribute `status` tells them apart
    "failed": TrialState.FAIL,
}


class SearchStudy:
    """Suggests hyperparameters with TPE (Bergstra et al. 2011) and is told the outcomes.

    The study lives in memory and is made from the record at every start. Each suggestion depends on the seed, the
    trial's number and what is in the study, so a search that was interrupted suggests what it would have.
    After a thousand trials TPE is shown a part of them (see shortlist.py).
    """

    def __init__(self, spec: JobSpec, trainings: Sequence[Training]) -> None:
        """trainings: the search's on record, in the order of their numbers."""
        self._spec = spec
        self._space = distributions(spec.search)
        is_maximized = direction(spec.search) == "maximize"
        self._study = _new_study(spec.search, storage=ShortlistStorage(is_maximized))
        self.num_suggested = len(trainings)  # counted here, because the study copies every trial that it lists
        self._running: dict[int, optuna.Trial] = {}
        self._known_epochs: dict[int, set[int]] = {}  # of running trials that were on record at the start
        for number, training in enumerate(trainings):
            assert training.number == number, training.id
            self._study.add_trial(_as_trial(training, spec.search, self._space))
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._running[trial.number] = optuna.Trial(self._study, trial._trial_id)
            self._known_epochs[trial.number] = set(trial.intermediate_values)

    def suggest(self) -> dict[str, Any]:
        """The searched hyperparameters of the next trial; the first trial is the recipe, where the space has it."""
        number = self.num_suggested
        if number == 0 and self._spec.baseline_is_in_space:
            self._study.enqueue_trial({key: getattr(self._spec.baseline, key) for key in self._space})
        self._study.sampler = _sampler(seed_of_trial(self._spec.seed, number), self._spec.search, self._space)
        self._running[number] = self._study.ask(self._space)
        self.num_suggested += 1
        return self._running[number].params

    def tell(self, training: Training) -> None:
        """Put an ended trial's outcome into the study, its whole curve included."""
        assert training.status is not None
        number = training.number
        assert number is not None, training.id
        running = self._running.pop(number)
        curve = _curve(training, self._spec.search)
        for epoch in curve.keys() - self._known_epochs.pop(number, set()):
            running.report(curve[epoch], epoch)
        value = curve[max(curve)] if training.status == "complete" else None
        self._study.tell(running, value, STATES[training.status])


def _new_study(search: Search, **where: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction=direction(search), **where)


def num_startup_trials(search: Search) -> int:
    """So many trials are drawn at random (the recipe apart) before TPE suggests from what they came to."""
    return 2 * len(search.space)


class _SpaceKnownTPE(optuna.samplers.TPESampler):
    """Does not look through all trials for what they have in common: each has the whole space."""

    def __init__(self, space: dict[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._known_space = {key: space[key] for key in sorted(space) if not space[key].single()}  # as TPE has it

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._known_space


def _sampler(seed: int, search: Search, space: dict[str, BaseDistribution]) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _SpaceKnownTPE(
            space,
            seed=seed,
            multivariate=True,
            constant_liar=True,  # trials that still run count as bad, so that parallel ones spread
            n_startup_trials=num_startup_trials(search),
        )


def write_study(path: StoragePath, name: str, search: Search, trainings: Sequence[Training]) -> None:
    """Write the study as a SQLite file that Optuna and its dashboard open."""

    def write(beside: Path) -> None:
        storage = optuna.storages.RDBStorage(f"sqlite:///{beside}")
        study_of(search, trainings, storage=storage, study_name=name)
        storage.engine.dispose()

    replace_atomic(path, write)


def study_of(search: Search, trainings: Sequence[Training], zone: tzinfo | None = None, **where: Any) -> optuna.Study:
    """The study with these trials in it; in memory, unless `where` gives `create_study` a storage.

    zone: of its times; by default the machine's, as Optuna has it.
    """
    space = distributions(search)
    study = _new_study(search, **where)
    study.add_trials([_as_trial(training, search, space, zone) for training in trainings])
    return study


def seed_of_trial(seed: int, number: int) -> int:
    """A seed for everything random about one trial; below 2**31."""
    digest = hashlib.sha256(f"{seed}/trial/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def direction(search: Search) -> Literal["minimize", "maximize"]:
    return "maximize" if search.objective == "val_accuracy" else "minimize"


def distributions(search: Search) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for key, dimension in search.space.items():
        if isinstance(dimension, Choices):
            found[key] = CategoricalDistribution(dimension.choices)
        elif is_whole(key):
            found[key] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            found[key] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return found


def _as_trial(
    training: Training, search: Search, space: dict[str, BaseDistribution], zone: tzinfo | None = None
) -> FrozenTrial:
    curve = _curve(training, search)
    state = STATES[training.status] if training.status else TrialState.RUNNING
    attributes = {"training": training.id, "status": training.status or "running"}
    if training.reason:
        attributes["reason"] = training.reason
    trial = create_trial(
        state=state,
        params={key: getattr(training.config, key) for key in space},
        distributions=space,
        user_attrs=attributes,
        intermediate_values=curve,
        # A pruned trial's value is that of its last epoch, as Optuna itself has it.
        value=curve[max(curve)] if curve and state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
    )
    trial.datetime_start = _time(training.created_at, zone)
    if training.ended:
        trial.datetime_complete = _time(training.ended.at, zone)
    return trial


def _curve(training: Training, search: Search) -> dict[int, float]:
    return {metrics.epoch: metrics.objective(search.objective) for metrics in training.history}


def _time(at: str, zone: tzinfo | None) -> datetime:
    """Optuna's times are without a zone."""
    return datetime.fromisoformat(at).astimezone(zone).replace(tzinfo=None)
