"""An interrupted search suggests what it would have suggested, and the study shows each trial as it was."""

import contextlib
import math
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.config import Choices, Hyperparameters, JobSpec, Range, Status, TrainingConfig, parse_spec
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record import shortlist, study, study_file
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import EpochReported, Event, TrainingCreated, TrainingEnded
from mnist_ray.record.selection import select
from mnist_ray.record.state import RunState, Training
from mnist_ray.record.study import SearchStudy, distributions, frozen_trials, new_study, seed_of_trial
from mnist_ray.record.study_file import StudyFile, write_study
from tests.record.examples import SPEC, a_training, created, ended, reported, writing

SPACES: dict[str, dict[str, Any]] = {
    "default": {},
    "ranges": {
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "dropout": {"low": 0.1, "high": 0.1},
        "batch_size": {"low": 16, "high": 512, "log": True},
    },
    "choices": {"batch_size": {"choices": [128, 64, 32]}, "learning_rate": {"choices": [1, 0.001, 0.01]}},
    "parts": {
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "weight_decay": {"low": 1e-5, "high": 1e-1, "log": True, "off": 0.0},
    },
    "all parts": {
        "schedule": {"choices": ["cosine", "constant", "one_cycle"]},
        "weight_decay": {"low": 1e-5, "high": 1e-1, "log": True, "off": 0},
        "augment": {"low": 0.0, "high": 1.5},
    },
}
TRAINING = {"parts": {"schedule": "cosine"}, "all parts": {"schedule": "cosine"}}
NUM_EPOCHS = 3


def a_spec(space: str = "default", **search: Any) -> JobSpec:
    parts = {
        "num_trials": 15,
        "num_epochs": NUM_EPOCHS,
        **({"space": SPACES[space]} if SPACES[space] else {}),
        **search,
    }
    if space == "all parts":
        parts["early_stopping"] = None
    training = TRAINING.get(space, {})
    return parse_spec({"name": "example", "seed": 4, "data": {"name": "digits"}, "search": parts, "training": training})


def loss_of(values: Hyperparameters, epoch: int) -> float:
    """Something for the search to learn, best near a learning rate of 0.003; the last epoch is not the best."""
    distance = math.log10(values.learning_rate) + 2.5
    return float(distance**2 + values.batch_size / 1e4 + 9 * values.dropout * abs(epoch - 2))


class Simulated:
    """A search whose trials end by chance, up to three of them at once; its state follows from events."""

    def __init__(self, spec: JobSpec, seed: int = 0, is_harsh: bool = False) -> None:
        self.spec = spec
        self.state = RunState()
        self.study = SearchStudy(spec, [])
        self.running: list[str] = []
        self._chance = random.Random(seed)
        self._is_harsh = is_harsh  # hardly any trial is complete

    @property
    def trainings(self) -> list[Training]:
        return self.state.trainings("search")

    def suggest(self) -> Hyperparameters:
        """Begin the trial that the study suggests, and return the suggestion."""
        number = self.study.num_suggested
        suggested = self.study.suggest()
        config = self.spec.training_config(suggested, NUM_EPOCHS, seed=0)
        training_id = f"trial-{number:04d}"
        self._apply(TrainingCreated(id=training_id, stage="search", config=config, number=number))
        self.running.append(training_id)
        return suggested

    def advance(self) -> None:
        """Let one running trial take an epoch, which may be its last."""
        training_id = self._chance.choice(self.running)
        epoch = self.training(training_id).epochs_done + 1
        fate = self._chance.random()
        if fate < 0.1:
            self.end(training_id, "failed", f"died in epoch {epoch}")
            return
        loss = loss_of(self.training(training_id).config, epoch)
        score = Score(loss, round(10_000 / (1 + loss)), 10_000)
        self._apply(EpochReported(id=training_id, metrics=EpochMetrics(epoch, 0.5, score, score)))
        if epoch == NUM_EPOCHS:
            self.end(training_id, "complete")
        elif fate < (0.8 if self._is_harsh else 0.4):
            self.end(training_id, "pruned", f"among the worst at epoch {epoch}")
        elif fate < 0.5:
            self.end(training_id, "stopped", "max_hours 1.0 over")

    def end(self, training_id: str, status: Status, reason: str | None = None) -> None:
        self._apply(TrainingEnded(id=training_id, status=status, reason=reason))
        self.study.tell(self.training(training_id))
        self.running.remove(training_id)

    def training(self, training_id: str) -> Training:
        training = self.state.training(training_id)
        assert training is not None
        return training

    def rebuilt(self) -> SearchStudy:
        return SearchStudy(self.spec, self.trainings)

    def steps(self) -> Iterator[None]:
        """Yield before each suggestion."""
        while self.study.num_suggested < self.spec.search.num_trials:
            if len(self.running) < 3:
                yield
                self.suggest()
            else:
                self.advance()

    def finish(self) -> "Simulated":
        """Suggest every trial."""
        for _ in self.steps():
            pass
        return self

    def _apply(self, event: Event) -> None:
        self.state.apply(Numbered(self.state.num_events + 1, event))


@contextmanager
def opened(path: Path, name: str) -> Iterator[optuna.Study]:
    """Open a study as Optuna's dashboard does."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        yield optuna.load_study(study_name=name, storage=storage)
    finally:
        storage.engine.dispose()


# --- what is suggested


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize("is_harsh", [False, True], ids=["mild", "harsh"])
def test_rebuilt_studies_suggest_the_same(space: str, objective: str, is_harsh: bool) -> None:
    """At every step, with trials complete, pruned, stopped, failed and half-way through."""
    simulated = Simulated(a_spec(space, objective=objective), is_harsh=is_harsh)
    statuses: set[str | None] = set()
    for _ in simulated.steps():
        statuses |= {training.status for training in simulated.trainings}
        again = simulated.rebuilt().suggest()
        assert again == simulated.rebuilt().suggest()
        assert again == simulated.suggest()
    assert statuses >= ({"pruned", "failed", None} if is_harsh else {"complete", "pruned", "failed", None})


def test_rebuilt_studies_reach_the_same_end() -> None:
    """With trials that were running when the study was made again."""
    whole, parts = Simulated(a_spec()).finish(), Simulated(a_spec())
    for _ in parts.steps():
        parts.study = parts.rebuilt()
    configs = [[training.config for training in each.trainings] for each in (whole, parts)]
    assert configs[0] == configs[1]


def by_optuna_alone(simulated: Simulated) -> Hyperparameters:
    """Return the next suggestion of Optuna's own TPE, in a study of its own with every trial on record."""
    spec = simulated.spec
    space = distributions(spec.search)
    plain = optuna.create_study(direction=study.direction(spec.search))
    trainings = simulated.trainings
    plain.add_trials([study._as_trial(training, spec) for training in trainings])
    if not trainings:
        plain.enqueue_trial({key: getattr(spec.baseline, key) for key in space})
    plain.sampler = optuna.samplers.TPESampler(
        seed=seed_of_trial(spec.seed, len(trainings)),
        multivariate=True,
        constant_liar=True,
        n_startup_trials=2 * len(space),
    )
    return Hyperparameters(**{**spec.starting_point.model_dump(), **plain.ask(space).params})


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("space", ["default", "choices"])
@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_suggestions_are_those_of_optuna(space: str, objective: str) -> None:
    simulated = Simulated(a_spec(space, objective=objective, num_trials=40))
    for _ in simulated.steps():
        assert by_optuna_alone(simulated) == simulated.suggest()


@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_shortlists_are_rebuilt_the_same(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "NUM_LATEST", 10)
    monkeypatch.setattr(shortlist, "NUM_BEST", 3)
    simulated = Simulated(a_spec(objective=objective, num_trials=45))
    differing = 0
    for _ in simulated.steps():
        again = simulated.rebuilt().suggest()
        differing += again != by_optuna_alone(simulated)
        assert again == simulated.suggest()
    assert differing > 10, "trials were left out"


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("part_complete", [0.0, 0.02, 0.5], ids=["none complete", "few complete", "half complete"])
def test_shortlists_hold_the_good_trials(direction: Literal["minimize", "maximize"], part_complete: float) -> None:
    """Those that TPE takes for good, which its private functions show; and all that run, and the latest."""
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
    """Return a trial with one of few values, so that many are equally good."""
    fate, value = chance.random(), float(chance.randrange(30))
    if fate < part_complete:
        return a_trial(state=TrialState.COMPLETE, value=value, intermediate_values={3: value})
    if fate > 0.95:
        return a_trial(state=TrialState.FAIL)
    curve = dict.fromkeys(range(1, chance.randrange(1, 4)), math.nan if fate > 0.93 else value)
    return a_trial(state=TrialState.PRUNED, intermediate_values=curve)


def a_trial(**facts: Any) -> FrozenTrial:
    return optuna.trial.create_trial(
        params={"dropout": 0.1}, distributions={"dropout": optuna.distributions.FloatDistribution(0.0, 1.0)}, **facts
    )


def suggestions(spec: JobSpec, seed: int = 0) -> list[TrainingConfig]:
    return [training.config for training in Simulated(spec, seed).finish().trainings]


def test_suggestions_follow_seed_and_history() -> None:
    spec = a_spec()
    first = suggestions(spec)
    assert first == suggestions(spec)
    assert first[1:] != suggestions(spec.model_copy(update={"seed": 5}))[1:]
    assert first[-1] != suggestions(spec, seed=1)[-1], "and the search learns"


def test_global_random_state_is_unused() -> None:
    random.seed(1)
    first = suggestions(a_spec())
    random.seed(2)
    assert first == suggestions(a_spec())


@pytest.mark.parametrize("space", SPACES)
def test_suggestions_lie_in_the_space(space: str) -> None:
    spec = a_spec(space)
    for config in suggestions(spec)[len(spec.fixed_trials) :]:
        assert spec.is_in_space(config.hyperparameters)


@pytest.mark.parametrize("space", SPACES)
def test_fixed_trials_come_first(space: str) -> None:
    """Whether the space has them or not, and in a space of many points they do not come again."""
    spec = a_spec(space)
    fixed = list(spec.fixed_trials)
    assert len(fixed) == (2 if space in ("parts", "all parts") else 1)
    simulated = Simulated(spec).finish()
    values = [training.config.hyperparameters for training in simulated.trainings]
    assert values[: len(fixed)] == fixed
    assert space == "choices" or not set(fixed) & set(values[len(fixed) :])


def test_off_and_on_are_both_tried() -> None:
    decays = [config.weight_decay for config in suggestions(a_spec("parts", num_trials=30))]
    assert 0.0 in decays[2:] and max(decays) > 0
    assert all(decay == 0 or 1e-5 <= decay <= 0.1 for decay in decays)


@pytest.mark.parametrize("space", SPACES)
def test_studies_hold_points_of_the_space_alone(space: str) -> None:
    """A fixed trial outside of it stands there without parameters."""
    simulated = Simulated(a_spec(space, num_trials=25)).finish()
    spec, known = simulated.spec, distributions(simulated.spec.search)
    trials = study.study_of(spec, simulated.trainings).trials
    for trial, training in zip(trials, simulated.trainings, strict=True):
        values = training.config.hyperparameters
        assert bool(trial.params) == spec.is_in_space(values)
        assert trial.user_attrs.get("fixed") == (None if trial.params else NAMES[training.number or 0])
        assert trial.distributions == {key: known[key] for key in trial.params}
    assert bool(trials[0].params) == (space in ("default", "choices", "all parts"))


NAMES = {0: "recipe", 1: "recipe and training"}


def test_trials_without_parameters_teach_nothing() -> None:
    """TPE suggests the same whatever such a trial came to."""
    found = []
    for loss in (1e-9, 1e9):
        simulated = Simulated(a_spec("ranges", num_trials=30)).finish()
        for metrics in simulated.trainings[0].history:
            simulated.trainings[0].history[metrics.epoch - 1] = replace(metrics, validation=Score(loss, 1, 10_000))
        assert study.study_of(simulated.spec, simulated.trainings).trials[0].params == {}
        found.append(SearchStudy(simulated.spec, simulated.trainings).suggest())
    assert found[0] == found[1]


def test_parallel_trials_differ() -> None:
    simulated = Simulated(a_spec())
    together = [simulated.suggest() for _ in range(8)]
    assert len({values.learning_rate for values in together}) == 8


def test_seeds_of_trials_never_change() -> None:
    """They are part of what a recorded search means, so they must never change."""
    seeds = {seed_of_trial(seed, number) for seed in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of_trial(0, 0) == 1318082918


def test_distributions_are_the_space() -> None:
    spec = a_spec("ranges")
    found = distributions(spec.search)
    assert list(found) == list(spec.search.space)
    assert list(distributions(a_spec("parts").search)) == ["learning_rate", "weight_decay_off", "weight_decay"]
    for key, dimension in spec.search.space.items():
        assert isinstance(dimension, Range)
        distribution: Any = found[key]
        assert (distribution.low, distribution.high, distribution.log) == (dimension.low, dimension.high, dimension.log)
    assert isinstance(found["batch_size"], optuna.distributions.IntDistribution)
    batch_sizes = a_spec("choices").search.space["batch_size"]
    assert isinstance(batch_sizes, Choices)
    categorical: Any = distributions(a_spec("choices").search)["batch_size"]
    assert categorical.choices == batch_sizes.choices


# --- the exported study


@dataclass(frozen=True)
class Searched:
    """A search whose study lies in a file."""

    simulated: Simulated
    study: Path

    @property
    def trainings(self) -> list[Training]:
        return self.simulated.trainings


def written(simulated: Simulated, path: Path) -> Searched:
    write_study(path, simulated.spec, simulated.trainings)
    return Searched(simulated, path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Fifteen trials: one at least of each end, and some that still run."""
    simulated = Simulated(a_spec(), seed=3).finish()
    assert {training.status for training in simulated.trainings} == {"complete", "pruned", "stopped", "failed", None}
    return written(simulated, tmp_path_factory.mktemp("searched") / "study.sqlite3")


STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    None: TrialState.RUNNING,
}


def test_studies_show_trials_as_recorded(searched: Searched) -> None:
    with opened(searched.study, "example") as study:
        assert study.direction == optuna.study.StudyDirection.MINIMIZE
        trials = study.trials
    assert [trial.number for trial in trials] == list(range(15))
    for trial, training in zip(trials, searched.trainings, strict=True):
        assert trial.state == STATES[training.status]
        space = searched.simulated.spec.search.space
        assert trial.params == {key: getattr(training.config, key) for key in space}
        curve = {metrics.epoch: metrics.objective("val_loss") for metrics in training.history}
        assert trial.intermediate_values == curve
        last = curve[max(curve)] if curve else None
        assert trial.value == (last if training.status in ("complete", "pruned", "stopped") else None)
        assert trial.user_attrs["training"] == training.id
        assert trial.user_attrs["status"] == (training.status or "running")
        assert trial.user_attrs.get("reason") == training.reason
        assert trial.datetime_start is not None
        assert (trial.datetime_complete is None) == (training.status is None)
        if trial.datetime_complete is not None:
            assert trial.datetime_start <= trial.datetime_complete


@pytest.fixture(params=["UTC", "Asia/Kathmandu"])
def _zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_zone")
@pytest.mark.parametrize("space", SPACES)
def test_files_are_those_of_optuna(tmp_path: Path, space: str) -> None:
    """Every trial is read back as if Optuna's own storage had written it; one trial is still open."""
    simulated = Simulated(a_spec(space))
    for step, _ in enumerate(simulated.steps()):
        if step == 25:
            break
    spec, trainings = simulated.spec, simulated.trainings
    assert {training.status for training in trainings} > {None, "complete"}
    ours, theirs = tmp_path / "ours.sqlite3", tmp_path / "theirs.sqlite3"
    write_study(ours, spec, trainings)
    storage = optuna.storages.RDBStorage(f"sqlite:///{theirs}")
    new_study(spec.search, storage=storage, study_name=spec.name).add_trials(frozen_trials(spec, trainings))
    storage.engine.dispose()
    with opened(ours, spec.name) as one, opened(theirs, spec.name) as other:
        assert one.trials == other.trials
        assert one.direction == other.direction
    with contextlib.closing(sqlite3.connect(ours)) as one, contextlib.closing(sqlite3.connect(theirs)) as other:
        assert schema(one) == schema(other)


def schema(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Return the statements that make the tables, each with the number of rows."""
    made = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    return [(sql, connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name, sql in made]


@pytest.mark.parametrize("losses", [(), (0.5, 0.4)], ids=["at once", "later"])
def test_failed_trials_keep_their_reason(tmp_path: Path, losses: tuple[float, ...]) -> None:
    failure = ended(status="failed", reason="RuntimeError: it broke", trace="Traceback")
    trials = [a_training("trial-0000", "complete", 0.9, 0.9, 0.9, number=0)]
    trials.append(a_training("trial-0001", None, *losses, number=1, ended=failure))
    path = tmp_path / "study.sqlite3"
    write_study(path, SPEC, trials)
    with opened(path, "example") as study:
        _, failed = study.trials
        assert (failed.state, failed.value) == (TrialState.FAIL, None)
        assert failed.user_attrs == {"training": "trial-0001", "status": "failed", "reason": "RuntimeError: it broke"}
        assert failed.intermediate_values == dict(enumerate(losses, start=1))
        assert study.best_trial.user_attrs["training"] == "trial-0000"


def test_the_best_trial_is_selected(searched: Searched) -> None:
    selection = select(searched.simulated.spec.model_copy(update={"final": None}), searched.trainings, [])
    assert selection is not None
    with opened(searched.study, "example") as study:
        assert study.best_trial.user_attrs["training"] == selection.training.id
        assert study.best_value == selection.score


def test_accuracy_is_maximized(tmp_path: Path) -> None:
    searched = written(Simulated(a_spec(objective="val_accuracy")).finish(), tmp_path / "study.sqlite3")
    selection = select(searched.simulated.spec.model_copy(update={"final": None}), searched.trainings, [])
    assert selection is not None
    with opened(searched.study, "example") as study:
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
        assert study.best_trial.user_attrs["training"] == selection.training.id


def test_studies_are_written_again(tmp_path: Path) -> None:
    """As the search goes on, also below a name that means something in an address; nothing else is left anywhere."""
    path, copy = tmp_path / "50%20 of ours, or what?mode=ro#1" / "study.sqlite3", tmp_path / "copy.sqlite3"
    simulated = Simulated(a_spec())
    seen = []
    for step, _ in enumerate(simulated.steps()):
        if step % 5 == 0:
            written(simulated, path)
            shutil.copy(path, copy)
            with opened(copy, "example") as study:
                seen.append(len(study.trials))
    assert seen == [0, 5, 10]
    assert [each.name for each in path.parent.iterdir()] == ["study.sqlite3"]
    assert set(tmp_path.iterdir()) == {path.parent, copy}


def test_open_studies_follow_a_search(tmp_path: Path) -> None:
    """Trials that changed are put into the file; a reader that has it open sees what a new file would hold."""
    simulated = Simulated(a_spec())
    spec, path, other = simulated.spec, tmp_path / "study.sqlite3", tmp_path / "other.sqlite3"
    write_study(path, spec, [])
    put: dict[str, tuple[int, bool]] = {}
    with opened(path, spec.name) as reader, contextlib.closing(StudyFile(path, spec)) as study:
        for step, _ in enumerate(simulated.steps()):
            now = {trial.id: (trial.epochs_done, trial.ended is not None) for trial in simulated.trainings}
            study.put([trial for trial in simulated.trainings if put.get(trial.id) != now[trial.id]])
            put = now
            if step % 5 == 0:
                write_study(other, spec, simulated.trainings)
                with opened(other, spec.name) as whole:
                    assert reader.trials == whole.trials
    assert len(put) > 10


@pytest.mark.parametrize(
    "before", ["a study", "no database", "a torn study", "a locked study", "a study with a journal"]
)
def test_studies_are_written_in_place(before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has the file open sees the new content; a file that cannot take it is replaced."""
    monkeypatch.setattr(study_file, "BUSY_S", 0.5)
    simulated, path = Simulated(a_spec()), tmp_path / "study.sqlite3"
    write_study(path, simulated.spec, [])
    inode = path.stat().st_ino
    simulated.finish()
    with contextlib.ExitStack() as stack:
        if before == "no database":
            path.write_text("something else")
        if before == "a torn study":
            path.write_bytes(path.read_bytes()[:5000])
        if before == "a locked study":
            stack.enter_context(contextlib.closing(sqlite3.connect(path))).execute("BEGIN EXCLUSIVE")
        if before == "a study with a journal":
            path.with_name(f"{path.name}-journal").write_text("what SQLite would do first")
        if before == "a study":
            reader = stack.enter_context(opened(path, simulated.spec.name))
            assert reader.trials == []
        write_study(path, simulated.spec, simulated.trainings, in_place=True)
        if before == "a study":
            assert len(reader.trials) == len(simulated.trainings)
            assert path.stat().st_ino == inode
    with opened(path, simulated.spec.name) as written:
        assert len(written.trials) == len(simulated.trainings)


def test_only_published_epochs_are_studied(tmp_path: Path, unhurried: None) -> None:
    """Events that still wait are no part of the state, from which the exported study is made."""
    with writing(tmp_path / "run") as writer:
        writer.publish(created(number=0))
        writer.record(reported())
        searched = tmp_path / "study.sqlite3"
        write_study(searched, SPEC, writer.run.state.trainings("search"))
        with opened(searched, "example") as study:
            assert study.trials[0].intermediate_values == {}
        writer.flush()
        write_study(searched, SPEC, writer.run.state.trainings("search"))
        with opened(searched, "example") as study:
            assert study.trials[0].intermediate_values == {1: 0.1}
