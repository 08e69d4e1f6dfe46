"""The Optuna study of a search: what to try next, and what each trial came to."""

import hashlib
import warnings
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mnist_ray.config import Choices, Hyperparameters, JobSpec, Range, Search, Value, is_whole
from mnist_ray.record.shortlist import ShortlistStorage
from mnist_ray.record.state import Training

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
    After a thousand trials TPE is shown a part of them (see shortlist.py). A trial that is no point of the space is in
    the study without parameters, and shortlist.py keeps it from TPE.
    """

    def __init__(self, spec: JobSpec, trainings: Sequence[Training]) -> None:
        """trainings: the search's on record, in the order of their numbers."""
        self._spec = spec
        self._space = always_suggested(spec.search)
        is_maximized = direction(spec.search) == "maximize"
        self._study = new_study(spec.search, storage=ShortlistStorage(is_maximized))
        self.num_suggested = len(trainings)  # counted here, because the study copies every trial that it lists
        self._running: dict[int, optuna.Trial] = {}
        self._known_epochs: dict[int, set[int]] = {}  # of running trials that were on record at the start
        for number, training in enumerate(trainings):
            assert training.number == number, training.id
            self._study.add_trial(_as_trial(training, spec))
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._running[trial.number] = optuna.Trial(self._study, trial._trial_id)
            self._known_epochs[trial.number] = set(trial.intermediate_values)

    def suggest(self) -> Hyperparameters:
        """Return the configuration of the next trial: a fixed one, then what TPE suggests."""
        number, fixed = self.num_suggested, self._spec.fixed_trials
        values = fixed[number] if number < len(fixed) else None
        self._study.sampler = _sampler(seed_of_trial(self._spec.seed, number), self._spec.search, self._space)
        if values is None:
            running = self._study.ask(self._space)
            values = self._completed(running)
        elif self._spec.is_in_space(values):
            self._study.enqueue_trial(_params(self._spec.search, values))
            running = self._study.ask(self._space)
            self._completed(running)
        else:
            running = self._study.ask()
        self._running[number] = running
        self.num_suggested += 1
        return values

    def _completed(self, running: optuna.Trial) -> Hyperparameters:
        """Suggest what a trial has only because of its other parameters, and return its configuration."""
        values: dict[str, Value] = self._spec.starting_point.model_dump()
        for key, dimension in self._spec.search.space.items():
            if not isinstance(dimension, Range) or dimension.off is None:
                values[key] = running.params[key]
            elif running.params[f"{key}_off"]:
                values[key] = int(dimension.off) if is_whole(key) else dimension.off
            elif is_whole(key):
                values[key] = running.suggest_int(key, int(dimension.low), int(dimension.high), log=dimension.log)
            else:
                values[key] = running.suggest_float(key, dimension.low, dimension.high, log=dimension.log)
        return Hyperparameters.model_validate(values)

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


def new_study(search: Search, **where: Any) -> optuna.Study:
    """Return a study without trials; in memory, unless `where` gives `create_study` a storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction=direction(search), **where)


def num_startup_trials(search: Search) -> int:
    """So many trials are drawn at random (the recipe apart) before TPE suggests from what they came to."""
    return 2 * len(search.space)


class _SpaceKnownTPE(optuna.samplers.TPESampler):
    """TPE that does not look through all trials for what they have in common: each has this space.

    The value beside an `off` is suggested on its own, from the trials that have one.
    """

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


def study_of(spec: JobSpec, trainings: Sequence[Training], zone: tzinfo | None = None) -> optuna.Study:
    """Return the study with these trials in it, in memory. zone: of its times; by default the machine's."""
    study = new_study(spec.search)
    study.add_trials(frozen_trials(spec, trainings, zone))
    return study


def frozen_trials(spec: JobSpec, trainings: Sequence[Training], zone: tzinfo | None = None) -> list[FrozenTrial]:
    """Return a search's trials as Optuna has them. zone: of their times; by default the machine's."""
    return [_as_trial(training, spec, zone) for training in trainings]


def seed_of_trial(seed: int, number: int) -> int:
    """A seed for everything random about one trial; below 2**31."""
    digest = hashlib.sha256(f"{seed}/trial/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def direction(search: Search) -> Literal["minimize", "maximize"]:
    return "maximize" if search.objective == "val_accuracy" else "minimize"


def distributions(search: Search) -> dict[str, BaseDistribution]:
    """Return the space as Optuna has it; a range with an `off` is two parameters: KEY_off, and KEY unless it is off."""
    found: dict[str, BaseDistribution] = {}
    for key, dimension in search.space.items():
        if isinstance(dimension, Choices):
            found[key] = CategoricalDistribution(dimension.choices)
            continue
        if dimension.off is not None:
            found[f"{key}_off"] = CategoricalDistribution((False, True))
        if is_whole(key):
            found[key] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            found[key] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return found


def always_suggested(search: Search) -> dict[str, BaseDistribution]:
    """Return the part of the space that every suggested trial has."""
    found = distributions(search)
    return {key: distribution for key, distribution in found.items() if f"{key}_off" not in found}


def _params(search: Search, values: Hyperparameters) -> dict[str, Any]:
    """Return a configuration of the space as Optuna has it."""
    params: dict[str, Any] = {}
    for key, dimension in search.space.items():
        value = getattr(values, key)
        if isinstance(dimension, Range) and dimension.off is not None:
            params[f"{key}_off"] = value == dimension.off
            if value == dimension.off:
                continue
        params[key] = value
    return params


def _as_trial(training: Training, spec: JobSpec, zone: tzinfo | None = None) -> FrozenTrial:
    curve = _curve(training, spec.search)
    state = STATES[training.status] if training.status else TrialState.RUNNING
    attributes = {"training": training.id, "status": training.status or "running"}
    if training.reason:
        attributes["reason"] = training.reason
    values, space = training.config.hyperparameters, distributions(spec.search)
    params = _params(spec.search, values) if spec.is_in_space(values) else {}
    if not params:
        attributes["fixed"] = "recipe" if values == spec.baseline else "recipe and training"
    trial = create_trial(
        state=state,
        params=params,
        distributions={key: space[key] for key in params},
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
