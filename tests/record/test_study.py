"""A search that was interrupted suggests what it would have, and what the study says of each trial is true."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.config import Choices, Hyperparameters, JobSpec, Range, parse_spec
from mnist_ray.record import shortlist, study
from mnist_ray.record.rundir import RunDir, Status, Training
from mnist_ray.record.selection import choose
from mnist_ray.record.study import SearchStudy, distributions, seed_of_trial, write_study

SPACES: dict[str, dict[str, Any]] = {
    "origin": {},
    "ranges": {
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "dropout": {"low": 0.1, "high": 0.1},
        "batch_size": {"low": 16, "high": 512, "log": True},
    },
    "choices": {"batch_size": {"choices": [128, 64, 32]}, "learning_rate": {"choices": [1, 0.001, 0.01]}},
}
NUM_EPOCHS = 3


def a_spec(space: str = "origin", **search: Any) -> JobSpec:
    parts = {
        "num_trials": 15,
        "num_epochs": NUM_EPOCHS,
        **({"space": SPACES[space]} if SPACES[space] else {}),
        **search,
    }
    return parse_spec({"name": "example", "seed": 4, "data": {"name": "digits"}, "search": parts})


def loss_of(values: dict[str, Any], epoch: int) -> float:
    """Something for the search to learn, best near a learning rate of 0.003; the last epoch is not the best."""
    distance = math.log10(values["learning_rate"]) + 2.5
    return float(distance**2 + values["batch_size"] / 1e4 + 9 * values["dropout"] * abs(epoch - 2))


class Simulated:
    """A search on record whose trials end as `chance` has it, up to three of them at once."""

    def __init__(self, folder: Path, spec: JobSpec, seed: int = 0, is_harsh: bool = False) -> None:
        self.spec = spec
        self.run = RunDir(folder)
        self.study = SearchStudy(spec, [])
        self.running: list[str] = []
        self._chance = random.Random(seed)
        self._is_harsh = is_harsh  # hardly any trial is complete

    def ask(self) -> dict[str, Any]:
        number = self.study.num_asked
        suggested = self.study.suggest()
        values = {**self.spec.recipe.model_dump(), **suggested}
        self.run.record_asked(f"trial-{number:04d}", "search", {**values, "num_epochs": NUM_EPOCHS}, number=number)
        self.running.append(f"trial-{number:04d}")
        return suggested

    def advance(self) -> None:
        """One epoch of one running trial, which may be its last."""
        training_id = self._chance.choice(self.running)
        epoch = self.training(training_id).epochs_done + 1
        fate = self._chance.random()
        if fate < 0.1:
            self.end(training_id, "failed", f"died in epoch {epoch}")
            return
        loss = loss_of(self.training(training_id).config, epoch)
        self.run.record_epoch(training_id, {"epoch": epoch, "val_loss": loss, "val_accuracy": 1 / (1 + loss)})
        if epoch == NUM_EPOCHS:
            self.end(training_id, "complete")
        elif fate < (0.8 if self._is_harsh else 0.4):
            self.end(training_id, "pruned", f"among the worst at epoch {epoch}")
        elif fate < 0.5:
            self.end(training_id, "stopped", "max_hours 1.0 were over")

    def end(self, training_id: str, status: Status, reason: str | None = None) -> None:
        self.run.record_ended(training_id, status, reason)
        self.study.tell(self.training(training_id))
        self.running.remove(training_id)

    def training(self, training_id: str) -> Training:
        training = self.run.training(training_id)
        assert training is not None
        return training

    def rebuilt(self) -> SearchStudy:
        return SearchStudy(self.spec, self.run.trainings("search"))

    def steps(self) -> Iterator[None]:
        """Yields before each suggestion but the first few."""
        while self.study.num_asked < self.spec.search.num_trials:
            if len(self.running) < 3:
                yield
                self.ask()
            else:
                self.advance()


@contextmanager
def opened(path: Path, name: str) -> Iterator[optuna.Study]:
    """As a user opens it, or Optuna's dashboard does."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        yield optuna.load_study(study_name=name, storage=storage)
    finally:
        storage.engine.dispose()


# --- what is suggested


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize("is_harsh", [False, True], ids=["mild", "harsh"])
def test_a_study_made_again_from_the_record_suggests_what_the_undisturbed_one_does(
    tmp_path: Path, space: str, objective: str, is_harsh: bool
) -> None:
    """At every step, with trials complete, pruned, stopped, failed and half-way through."""
    simulated = Simulated(tmp_path, a_spec(space, objective=objective), is_harsh=is_harsh)
    statuses: set[str | None] = set()
    for _ in simulated.steps():
        statuses |= {training.status for training in simulated.run.trainings("search")}
        again = simulated.rebuilt().suggest()
        assert again == simulated.rebuilt().suggest()
        assert again == simulated.ask()
    assert statuses >= ({"pruned", "failed", None} if is_harsh else {"complete", "pruned", "failed", None})


def test_a_study_made_again_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """A trial that was running when it was made again is told like any other."""
    whole, parts = Simulated(tmp_path / "whole", a_spec()), Simulated(tmp_path / "parts", a_spec())
    for _ in whole.steps():
        pass
    for _ in parts.steps():
        parts.study = parts.rebuilt()
    configs = [[training.config for training in each.run.trainings("search")] for each in (whole, parts)]
    assert configs[0] == configs[1]


def by_optuna_alone(simulated: Simulated) -> dict[str, Any]:
    """What Optuna's own TPE suggests next, in a study of its own with every trial on record."""
    spec = simulated.spec
    space = distributions(spec.search)
    plain = optuna.create_study(direction=study.direction(spec.search))
    trainings = simulated.run.trainings("search")
    plain.add_trials([study._as_trial(training, spec.search, space) for training in trainings])
    if not trainings and spec.recipe_is_in_space:
        plain.enqueue_trial({key: getattr(spec.recipe, key) for key in space})
    plain.sampler = optuna.samplers.TPESampler(
        seed=seed_of_trial(spec.seed, len(trainings)),
        multivariate=True,
        constant_liar=True,
        n_startup_trials=2 * len(space),
    )
    return plain.ask(space).params


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_suggestions_are_those_of_optunas_own_sampler(tmp_path: Path, space: str, objective: str) -> None:
    simulated = Simulated(tmp_path, a_spec(space, objective=objective, num_trials=40))
    for _ in simulated.steps():
        assert by_optuna_alone(simulated) == simulated.ask()


@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_beyond_the_shortlist_a_study_made_again_suggests_what_the_undisturbed_one_does(
    tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortlist, "NUM_LATEST", 10)
    monkeypatch.setattr(shortlist, "NUM_BEST", 3)
    simulated = Simulated(tmp_path, a_spec(objective=objective, num_trials=45))
    differing = 0
    for _ in simulated.steps():
        again = simulated.rebuilt().suggest()
        differing += again != by_optuna_alone(simulated)
        assert again == simulated.ask()
    assert differing > 10, "trials were left out"


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("part_complete", [0.0, 0.02, 0.5], ids=["none complete", "few complete", "half complete"])
def test_the_shortlist_holds_the_trials_that_tpe_takes_for_good(
    direction: Literal["minimize", "maximize"], part_complete: float
) -> None:
    """And all that run, and the latest; the private functions say what TPE of this Optuna takes."""
    chance = random.Random(5)
    trials = [an_ended_trial(chance, part_complete) for _ in range(1300)]
    trials[7] = optuna.trial.create_trial(state=TrialState.RUNNING)
    whole, short = (
        optuna.create_study(direction=direction, storage=storage)
        for storage in (None, shortlist.ShortlistStorage(direction == "maximize"))
    )
    for each in (whole, short):
        each.add_trials(trials)
    scored = [TrialState.COMPLETE, TrialState.PRUNED]
    assert default_gamma(len(whole.get_trials(states=scored))) == shortlist.NUM_BEST
    good = [
        [trial.number for trial in _split_trials(each, each.get_trials(states=scored), shortlist.NUM_BEST)[0]]
        for each in (whole, short)
    ]
    assert good[0] == good[1]
    latest = [trial.number for trial in whole.get_trials(states=scored)][-shortlist.NUM_LATEST :]
    listed = [trial.number for trial in short.trials]
    assert listed == sorted({*latest, *good[0], 7})


def an_ended_trial(chance: random.Random, part_complete: float) -> FrozenTrial:
    """With few values, so that many are as good as another."""
    fate, value = chance.random(), float(chance.randrange(30))
    if fate < part_complete:
        return optuna.trial.create_trial(state=TrialState.COMPLETE, value=value, intermediate_values={3: value})
    if fate > 0.95:
        return optuna.trial.create_trial(state=TrialState.FAIL)
    curve = dict.fromkeys(range(1, chance.randrange(1, 4)), math.nan if fate > 0.93 else value)
    return optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values=curve)


def suggestions(spec: JobSpec, folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    simulated = Simulated(folder, spec, seed)
    for _ in simulated.steps():
        pass
    return [training.config for training in simulated.run.trainings("search")]


def test_suggestions_follow_from_the_seed_and_from_what_came_before(tmp_path: Path) -> None:
    spec = a_spec()
    first = suggestions(spec, tmp_path / "first")
    assert first == suggestions(spec, tmp_path / "again")
    assert first[1:] != suggestions(spec.model_copy(update={"seed": 5}), tmp_path / "seed")[1:]
    assert first[-1] != suggestions(spec, tmp_path / "other ends", seed=1)[-1], "and the search learns"


def test_global_random_numbers_do_not_matter(tmp_path: Path) -> None:
    random.seed(1)
    first = suggestions(a_spec(), tmp_path / "first")
    random.seed(2)
    assert first == suggestions(a_spec(), tmp_path / "again")


@pytest.mark.parametrize("space", SPACES)
def test_suggestions_are_hyperparameters_in_the_space(tmp_path: Path, space: str) -> None:
    spec = a_spec(space)
    for values in suggestions(spec, tmp_path):
        for key, dimension in spec.search.space.items():
            assert dimension.holds(values[key])
        Hyperparameters(**{key: values[key] for key in Hyperparameters.model_fields})


@pytest.mark.parametrize("space", SPACES)
def test_the_first_trial_is_the_recipe_where_the_space_has_it(space: str) -> None:
    spec = a_spec(space)
    suggested = SearchStudy(spec, []).suggest()
    recipe = {key: getattr(spec.recipe, key) for key in spec.search.space}
    assert (suggested == recipe) == spec.recipe_is_in_space == (space != "ranges")


def test_only_the_first_trial_is_the_recipe(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, a_spec())
    first = simulated.ask()
    assert simulated.rebuilt().suggest() != first
    assert simulated.ask() != first


def test_trials_running_at_once_get_different_values(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, a_spec())
    together = [simulated.ask() for _ in range(8)]
    assert len({values["learning_rate"] for values in together}) == 8


def test_seeds_of_trials_differ_and_last() -> None:
    """They are part of what a recorded search means, so they must never change."""
    seeds = {seed_of_trial(seed, number) for seed in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of_trial(0, 0) == 1318082918


def test_the_distributions_are_the_space() -> None:
    spec = a_spec("ranges")
    found = distributions(spec.search)
    assert list(found) == list(spec.search.space)
    for key, dimension in spec.search.space.items():
        assert isinstance(dimension, Range)
        distribution: Any = found[key]
        assert (distribution.low, distribution.high, distribution.log) == (dimension.low, dimension.high, dimension.log)
    assert isinstance(found["batch_size"], optuna.distributions.IntDistribution)
    batch_sizes = a_spec("choices").search.space["batch_size"]
    assert isinstance(batch_sizes, Choices)
    categorical: Any = distributions(a_spec("choices").search)["batch_size"]
    assert categorical.choices == batch_sizes.choices


# --- what the study says


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """Fifteen trials: one at least of each end, and some that still run."""
    simulated = Simulated(tmp_path_factory.mktemp("searched"), a_spec(), seed=3)
    for _ in simulated.steps():
        pass
    ends = {training.status for training in simulated.run.trainings("search")}
    assert ends == {"complete", "pruned", "stopped", "failed", None}
    write_study(simulated.run.study, "example", simulated.spec.search, simulated.run.trainings("search"))
    return simulated


STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    None: TrialState.RUNNING,
}


def test_what_the_study_says_of_each_trial_is_true(searched: Simulated) -> None:
    trainings = searched.run.trainings("search")
    with opened(searched.run.study, "example") as study:
        assert study.direction == optuna.study.StudyDirection.MINIMIZE
        trials = study.trials
    assert [trial.number for trial in trials] == list(range(15))
    for trial, training in zip(trials, trainings, strict=True):
        assert trial.state == STATES[training.status]
        assert trial.params == {key: training.config[key] for key in searched.spec.search.space}
        assert trial.intermediate_values == {row["epoch"]: row["val_loss"] for row in training.history}
        last = training.history[-1]["val_loss"] if training.history else None
        assert trial.value == (last if training.status in ("complete", "pruned", "stopped") else None)
        assert trial.user_attrs["training"] == training.id
        assert trial.user_attrs["status"] == (training.status or "running")
        assert trial.user_attrs.get("reason") == (training.ended and training.ended["reason"])
        assert trial.datetime_start is not None
        assert (trial.datetime_complete is None) == (training.status is None)
        if trial.datetime_complete is not None:
            assert trial.datetime_start <= trial.datetime_complete


def test_the_studys_best_is_the_choice(searched: Simulated) -> None:
    choice = choose(searched.spec, searched.run.trainings("search"), [])
    assert choice is not None
    with opened(searched.run.study, "example") as study:
        assert study.best_trial.user_attrs["training"] == choice.training.id
        assert study.best_value == choice.score


def test_by_accuracy_the_study_maximises_it(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, a_spec(objective="val_accuracy"))
    for _ in simulated.steps():
        pass
    trainings = simulated.run.trainings("search")
    write_study(simulated.run.study, "accuracy", simulated.spec.search, trainings)
    choice = choose(simulated.spec, trainings, [])
    assert choice is not None
    with opened(simulated.run.study, "accuracy") as study:
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
        assert study.best_trial.user_attrs["training"] == choice.training.id


def test_a_study_is_written_again_as_the_search_goes_on(tmp_path: Path) -> None:
    """Also under a name with blanks and signs; nothing else is left beside it."""
    folder = tmp_path / "a folder, 100% ours"
    simulated = Simulated(folder, a_spec())
    seen = []
    for step, _ in enumerate(simulated.steps()):
        if step % 5 == 0:
            write_study(simulated.run.study, "example", simulated.spec.search, simulated.run.trainings("search"))
            with opened(simulated.run.study, "example") as study:
                seen.append(len(study.trials))
    assert seen == [0, 5, 10]
    assert sorted(path.name for path in folder.iterdir()) == ["record", "study.sqlite3"]
