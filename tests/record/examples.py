"""Events and runs for tests of the record, each as small as a test lets it be."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mnist_ray import __version__
from mnist_ray.config import JobSpec, Stage, Status, TrainingConfig, parse_spec
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record import events
from mnist_ray.record.events import EpochReported, Event, RunTaken, SessionStarted, TrainingCreated, TrainingEnded
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import Training
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import StoragePath

SPEC = parse_spec({"name": "example", "data": {"name": "digits"}, "search": {"num_epochs": 3}})


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig(**{"num_epochs": 3, "seed": 5, **values})


def metrics(epoch: int, loss: float = 0.1, num_correct: int = 90, with_validation: bool = True) -> EpochMetrics:
    score = Score(loss, num_correct, 100)
    return EpochMetrics(epoch, 0.25, score, score if with_validation else None)


def taken(**changes: Any) -> RunTaken:
    """Return the event by which this process becomes an owner; `changes` are of the process."""
    process = replace(this_process(), **changes)
    return RunTaken(format=events.RECORD_FORMAT, version=__version__, host="here", process=process)


def taken_elsewhere() -> RunTaken:
    """Return the event by which a process of another machine becomes the owner."""
    process = events.ProcessIdentity(7, "1", "another boot", "pid:[1]")
    return RunTaken(format=events.RECORD_FORMAT, version=__version__, host="elsewhere", process=process)


def started(spec: JobSpec = SPEC, data_s: float = 0.5) -> SessionStarted:
    return SessionStarted(
        spec=spec,
        data=events.DataFacts("a" * 64, "b" * 64, 1437),
        versions={"mnist_ray": __version__, "torch": "2"},
        cluster=events.ClusterFacts("local", 2, 0, ("made up",)),
        provenance=events.Provenance("c" * 64, None, None, "made up"),
        data_s=data_s,
    )


def created(training_id: str = "trial-0000", stage: Stage = "search", **changes: Any) -> TrainingCreated:
    number = int(training_id[-4:]) if training_id[-4:].isdigit() else None
    return TrainingCreated(**{"id": training_id, "stage": stage, "config": config(), "number": number, **changes})


def reported(training_id: str = "trial-0000", epoch: int = 1, loss: float = 0.1, **changes: Any) -> EpochReported:
    return EpochReported(**{"id": training_id, "metrics": metrics(epoch, loss), **changes})


def ended(training_id: str = "trial-0000", status: Status = "complete", **changes: Any) -> TrainingEnded:
    return TrainingEnded(id=training_id, status=status, **changes)


def search_ended(num_trials: int = 1, **changes: Any) -> events.SearchEnded:
    return events.SearchEnded(
        **{"num_trials": num_trials, "out_of_time": False, "used_s": 36.0, "elapsed_s": 36.0, **changes}
    )


def selected(rests_on: int, training: str | None = "trial-0000", **changes: Any) -> events.ConfigurationSelected:
    facts: dict[str, Any] = {
        "hyperparameters": config().hyperparameters,
        "score": 0.1,
        "final": None,
        "is_complete": True,
        "retrainings": (events.PlannedRetraining("retrain-trial-0000-seed-0", "selected", config(seed=0)),),
    }
    return events.ConfigurationSelected(**{"training": training, "rests_on": rests_on, **facts, **changes})


def weights(text: str = "weights") -> bytes:
    """Return a network's weights for tests that use no network: any safetensors will do."""
    return save({text: np.zeros(1, dtype=np.float32)})


def split_opened() -> events.TestOpened:
    return events.TestOpened(data="digits", also=(), models=("retrain-trial-0000-seed-0",))


def every_kind() -> list[Event]:
    """Return an event of each kind, with something in every field."""
    score = events.TestScore(Score(0.02, 357, 360), "d" * 64)
    return [
        taken(),
        replace(started(), provenance=events.Provenance("c" * 64, "d" * 40, True, "made up", ("a GPU",))),
        created("final-trial-0000-seed-1", "final", of="trial-0000"),
        reported(metrics=metrics(1, 0.1 + 0.2, with_validation=False)),
        ended(status="failed", reason="two\nlines", workers=2, steps="captured", trace="ünï → ☃", model="e" * 64),
        events.SearchStarted(),
        search_ended(out_of_time=True),
        events.FinalStarted(trainings=("final-trial-0000-seed-1",)),
        events.FinalEnded(trainings=("final-trial-0000-seed-1",), rests_on=7, elapsed_s=1e-300),
        selected(rests_on=7, final=events.FinalResult((events.FinalistMean("recipe", 0.5),), 0.1 + 0.2, 1e-300)),
        events.RetrainingStarted(concurrent=2),
        events.RetrainingEnded(rests_on=10, elapsed_s=1.0),
        events.RetrainingFailed(error="worker 1 died"),
        split_opened(),
        events.TestScored(
            scores={"retrain-trial-0000-seed-0": {"test": score, "qmnist50k": score}},
            examples={"test": "f" * 64},
            elapsed_s=0.5,
        ),
    ]


@contextmanager
def writing(folder: StoragePath, owner: RunTaken | None = None) -> Iterator[RunWriter]:
    """Yield the writer of a run, and close the writer at the end."""
    writer = RunWriter(read(folder), owner or taken())
    try:
        yield writer
    finally:
        writer.close()


def write(folder: StoragePath, *written: Event) -> RunDir:
    """Take a run, publish events, and return the run as another process reads it."""
    with writing(folder) as writer:
        for event in written:
            writer.record(event)
    return read(folder)


def read(folder: StoragePath) -> RunDir:
    """Return the run as it is now."""
    run = RunDir(folder)
    run.catch_up()
    return run


def one_training() -> list[Event]:
    """Return the events of a trial of two epochs."""
    return [
        created(number=0),
        reported(epoch=1, loss=0.1 + 0.2),
        reported(epoch=2, loss=1e-300),
        ended(status="pruned", reason="among the worst at epoch 2"),
    ]


def a_training(
    training_id: str, status: Status | None, *losses: float, num_correct: int = 90, **changes: Any
) -> Training:
    """Return a training with one epoch a loss."""
    history = [metrics(epoch, loss, num_correct) for epoch, loss in enumerate(losses, start=1)]
    made = created(training_id)
    training = Training(training_id, "search", config(), made.at, history=history, reported_at=[made.at] * len(losses))
    return replace(training, **{"ended": ended(training_id, status) if status else None, **changes})


def log_files(run: RunDir) -> list[Path]:
    """Return the files of a run's log, in order."""
    return sorted(run.paths.record.glob("[0-9]*.json"))
