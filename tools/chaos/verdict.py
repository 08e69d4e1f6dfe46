"""What is promised of a run that was killed, against what it left on record."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.tables import read_results, results_table
from mnist_ray.storage.files import sha256
from tools.chaos.killing import Kill, Story, digest, epoch_of, finished, name_of, training_of

# What says that a run has got further. The start of another session does not.
PROGRESS = ("asked", "epoch", "ended", "searched", "chosen", "retrained", "unsealed", "tested")


@dataclass(frozen=True)
class Outcome:
    """What a run came to: everything but when, how long and by which process."""

    trials: dict[str, Any]  # by id: configuration, status, one row an epoch
    retrainings: dict[str, Any]
    weights: dict[str, Any]  # by retraining: the file's SHA-256
    tested: dict[str, Any]  # by retraining: its scores
    choice: dict[str, Any]


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
        ran_twice=sorted(ran_again(run.events()) | changed(story.kills, run)),
        left_running=left_running(run),
        differences=compare(reference, found) if reference else [],
        faults=[*story_faults(story), *record_faults(run), *view_faults(run)],
    )


def outcome_of(run: RunDir) -> Outcome:
    chosen = run.stage("chosen") or {}
    return Outcome(
        trials={trial.id: timeless(trial) for trial in run.trainings("search")},
        retrainings={training.id: timeless(training) for training in run.trainings("retrain")},
        weights={
            training.id: sha256(run.model(training.id).read_bytes())
            for training in run.trainings("retrain")
            if run.model(training.id).is_file()
        },
        tested=copy.deepcopy((run.stage("tested") or {}).get("scores", {})),
        choice={key: chosen.get(key) for key in ("training", "hyperparameters", "score")},
    )


def timeless(training: Training) -> dict[str, Any]:
    rows = [{key: row[key] for key in sorted(row) if key not in ("at", "elapsed_s")} for row in training.history]
    return {"config": training.config, "status": training.status, "history": rows}


# --- what ran twice ----------------------------------------------------------------------------------------------


def ran_again(events: Sequence[Mapping[str, Any]]) -> set[str]:
    """The trainings that have an event after their end."""
    ended: set[str] = set()
    again: set[str] = set()
    for event in events:
        training = training_of(event)
        if training is None:
            continue
        if training in ended:
            again.add(training)
        if event["kind"] == "ended":
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
    """A run at its end: each training asked for once, with each epoch once and in order, ended once."""
    events = run.events()
    faults = [] if run.stage("tested") else ["the run was not tested"]
    faults += [f"{stage} is on record {number} times" for stage, number in _repeated_stages(run)]
    for training in [*run.trainings("search"), *run.trainings("retrain")]:
        asked, ended = (
            sum(event["kind"] == kind and training_of(event) == training.id for event in events)
            for kind in ("asked", "ended")
        )
        if (asked, ended) != (1, 1):
            faults.append(f"{training.id} was asked for {asked} times and ended {ended} times")
        epochs = [row["epoch"] for row in training.history]
        if epochs != list(range(1, len(epochs) + 1)):
            faults.append(f"{training.id} has the epochs {epochs}")
    return faults


def _repeated_stages(run: RunDir) -> Iterator[tuple[str, int]]:
    names = [entry["stage"] for entry in run.all_stages()]
    for stage in ("searched", "chosen", "retrained", "unsealed", "tested"):
        if names.count(stage) != 1:
            yield stage, names.count(stage)


def view_faults(run: RunDir) -> list[str]:
    """The files that are made from the record: all there, and what they say is what it says."""
    views = [run.results_csv, run.results_parquet, run.results_markdown, run.history_parquet, run.outcome]
    missing = [path.name for path in [*views, run.best_spec, run.study] if not path.is_file()]
    if missing:
        return [f"{name} is missing" for name in missing]
    table = results_table(run)
    return [
        f"{path.name} is not what the record says"
        for path in (run.results_csv, run.results_parquet)
        if not read_results(path).equals(table)
    ]


def left_running(run: RunDir) -> list[str]:
    """Trials of the Optuna study that are not at an end. A missing study is a fault of the views."""
    if not run.study.is_file():
        return []
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{run.study}")
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    open_trials = [
        f"trial {trial.number}" for study in studies for trial in study.trials if not trial.state.is_finished()
    ]
    storage.engine.dispose()
    return open_trials


# --- the undisturbed run -----------------------------------------------------------------------------------------


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """Where two runs that should be equal are not, a line each."""
    parts = ("trials", "retrainings", "weights", "tested", "choice")
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


def seconds_lost(story: Story, events: Sequence[Mapping[str, Any]]) -> list[float]:
    """For each kill the seconds until the run got further than it had been, or until the next kill, or its end."""
    gains = progress_times(events)
    moments = [*(kill.at for kill in story.kills), story.ended]
    return [min([end, *(gain for gain in gains if gain > at)]) - at for at, end in pairwise(moments)]


def progress_times(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Unix times of the events that were new: an epoch that is reported again after a restart is not."""
    known: set[tuple[Any, ...]] = set()
    times = []
    for event in events:
        what = (name_of(event), training_of(event), epoch_of(event))
        if what[0] in PROGRESS and what not in known:
            known.add(what)
            times.append(datetime.fromisoformat(event["at"]).timestamp())
    return times
