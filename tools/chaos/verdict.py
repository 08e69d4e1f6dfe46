"""What is promised of a run that was killed, against what it left on record."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from mnist_ray.record.events import Event, TrainingCreated, TrainingEnded, kind_of
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import Training
from mnist_ray.record.tables import read_results, results_table
from mnist_ray.storage.files import sha256
from tools.chaos.killing import Kill, Story, digest, epoch_of, events_of, finished, name_of, training_of

# The events of a run that has got further. The start of another session is none.
PROGRESS = (
    *("training_created", "epoch_reported", "training_ended", "search_ended", "configuration_selected"),
    *("retraining_ended", "test_opened", "test_scored"),
)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: everything but when, how long and by which process."""

    trials: dict[str, Any]  # by id: configuration, status, one row an epoch
    retrainings: dict[str, Any]
    weights: dict[str, Any]  # by retraining: the file's SHA-256
    tested: dict[str, Any]  # by retraining: its scores
    selected: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Everything about one run that is not as promised; all empty for a good one."""

    run: str
    ran_twice: list[str]  # finished trainings that were begun, went on or ended once more
    left_running: list[str]  # trials of the Optuna study
    differences: list[str]  # from the undisturbed run
    faults: list[str]  # all else

    @property
    def is_good(self) -> bool:
        return not (self.ran_twice or self.left_running or self.differences or self.faults)


def judge(story: Story, run: RunDir, reference: Outcome | None, is_exact: bool) -> Verdict:
    """is_exact: the search, too, must be that of the reference, which holds for one trial at a time."""
    found = outcome_of(run)
    compare = differences if is_exact else shared_differences
    return Verdict(
        run=story.run,
        ran_twice=sorted(ran_again(events_of(run)) | changed(story.kills, run)),
        left_running=left_running(run),
        differences=compare(reference, found) if reference else [],
        faults=[*story_faults(story), *record_faults(run), *export_faults(run)],
    )


def outcome_of(run: RunDir) -> Outcome:
    state = run.state
    selected, tested = state.selected, state.tested
    retrainings = state.trainings("retrain")
    models = {training.id: run.paths.model(training.id) for training in retrainings}
    return Outcome(
        trials={trial.id: timeless(trial) for trial in state.trainings("search")},
        retrainings={training.id: timeless(training) for training in retrainings},
        weights={training_id: sha256(path.read_bytes()) for training_id, path in models.items() if path.is_file()},
        tested={
            training_id: {name: asdict(score) for name, score in scores.items()}
            for training_id, scores in (tested.scores if tested else {}).items()
        },
        selected={
            "training": selected and selected.training,
            "hyperparameters": selected and selected.hyperparameters.model_dump(),
            "score": selected and selected.score,
        },
    )


def timeless(training: Training) -> dict[str, Any]:
    rows = [
        {key: value for key, value in sorted(metrics.columns().items()) if key != "elapsed_s"}
        for metrics in training.history
    ]
    return {"config": training.config.model_dump(), "status": training.status, "history": rows}


# --- what ran twice ----------------------------------------------------------------------------------------------


def ran_again(events: Sequence[Event]) -> set[str]:
    """The trainings that have an event after their end."""
    ended: set[str] = set()
    again: set[str] = set()
    for event in events:
        training = training_of(event)
        if training is None:
            continue
        if training in ended:
            again.add(training)
        if isinstance(event, TrainingEnded):
            ended.add(training)
    return again


def changed(kills: Sequence[Kill], run: RunDir) -> set[str]:
    """The trainings that were finished when something was killed, and are gone or others now."""
    now = {training.id: digest(training) for training in finished(run)}
    return {training for kill in kills for training, then in kill.ended.items() if now.get(training) != then}


# --- faults ------------------------------------------------------------------------------------------------------


def story_faults(story: Story) -> list[str]:
    faults = [f"a driver gave up by itself: {reason}" for reason in story.gave_up]
    faults += [f"a process was left behind: {title}" for title in story.left_behind]
    return faults + ([f"the run did not end: {story.stuck}"] if story.stuck else [])


def record_faults(run: RunDir) -> list[str]:
    """Return the faults of a run at its end: each training is created once, with each epoch in order, and ends once."""
    events, state = events_of(run), run.state
    faults = [] if state.tested else ["the run was not tested"]
    faults += [f"{kind} is on record {number} times" for kind, number in _repeated_stages(run)]
    for training in [*state.trainings("search"), *state.trainings("final"), *state.trainings("retrain")]:
        created, ended = (
            sum(isinstance(event, kind) and event.id == training.id for event in events)
            for kind in (TrainingCreated, TrainingEnded)
        )
        if (created, ended) != (1, 1):
            faults.append(f"{training.id} was created {created} times and ended {ended} times")
        epochs = [metrics.epoch for metrics in training.history]
        if epochs != list(range(1, len(epochs) + 1)):
            faults.append(f"{training.id} has the epochs {epochs}")
    return faults


def _repeated_stages(run: RunDir) -> Iterator[tuple[str, int]]:
    kinds = [kind_of(type(event)) for event in run.state.stage_events]
    for kind in ("search_ended", "configuration_selected", "retraining_ended", "test_opened", "test_scored"):
        if kinds.count(kind) != 1:
            yield kind, kinds.count(kind)


def export_faults(run: RunDir) -> list[str]:
    """Return the faults of the exported files, which must all be there and show what is on record."""
    paths = run.paths
    tables = [paths.results_csv, paths.results_parquet, paths.results_markdown, paths.history_parquet]
    missing = [path.name for path in [*tables, paths.outcome, paths.selected_spec, paths.study] if not path.is_file()]
    if missing:
        return [f"{name} is missing" for name in missing]
    table = results_table(run.state)
    return [
        f"{path.name} is not what the record says"
        for path in (paths.results_csv, paths.results_parquet)
        if not read_results(path).equals(table)
    ]


def left_running(run: RunDir) -> list[str]:
    """Trials of the Optuna study that are not at an end. A missing study is a fault of the exports."""
    if not run.paths.study.is_file():
        return []
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{run.paths.study}")
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    open_trials = [
        f"trial {trial.number}" for study in studies for trial in study.trials if not trial.state.is_finished()
    ]
    storage.engine.dispose()
    return open_trials


# --- the undisturbed run -----------------------------------------------------------------------------------------


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """Where two runs that should be equal are not, a line each."""
    parts = ("trials", "retrainings", "weights", "tested", "selected")
    return [line for part in parts for line in _differences_of(part, getattr(expected, part), getattr(found, part))]


def _differences_of(part: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    keys = sorted(expected.keys() | found.keys())
    return [
        f"{part}: {key} is {_brief(found.get(key))}, undisturbed {_brief(expected.get(key))}"
        for key in keys
        if expected.get(key) != found.get(key)
    ]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"


def shared_differences(expected: Outcome, found: Outcome) -> list[str]:
    """For several trials at a time, whose search may go another way: equal trainings must be equal still.

    A trial of the same configuration and seed has the same epochs as far as both went, a retraining has the same
    epochs, weights and scores.
    """
    lines = []
    for trial, other in _of_equal_config(expected.trials, found.trials):
        ours, theirs = expected.trials[trial]["history"], found.trials[other]["history"]
        shared = min(len(ours), len(theirs))
        if ours[:shared] != theirs[:shared]:
            lines.append(f"trials: {other} has other epochs than the same trial undisturbed ({trial})")
    for training, other in _of_equal_config(expected.retrainings, found.retrainings):
        lines += [
            f"{part}: {other} is not what it is undisturbed"
            for part in ("retrainings", "weights", "tested")
            if getattr(expected, part).get(training) != getattr(found, part).get(other)
        ]
    return lines


def num_shared_retrainings(expected: Outcome, found: Outcome) -> int:
    return len(list(_of_equal_config(expected.retrainings, found.retrainings)))


def _of_equal_config(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for ours, content in expected.items():
        for theirs, other in found.items():
            if content["config"] == other["config"]:
                yield ours, theirs


# --- what a kill costs -------------------------------------------------------------------------------------------


def seconds_lost(story: Story, events: Sequence[Event]) -> list[float]:
    """For each kill the seconds until the run got further than it had been, or until the next kill, or its end."""
    gains = progress_times(events)
    moments = [*(kill.at for kill in story.kills), story.ended]
    return [min([end, *(gain for gain in gains if gain > at)]) - at for at, end in pairwise(moments)]


def progress_times(events: Sequence[Event]) -> list[float]:
    """Unix times of the events that were new: an epoch that is reported again after a restart is not."""
    known: set[tuple[Any, ...]] = set()
    times = []
    for event in events:
        what = (name_of(event), training_of(event), epoch_of(event))
        if what[0] in PROGRESS and what not in known:
            known.add(what)
            times.append(datetime.fromisoformat(event.at).timestamp())
    return times
