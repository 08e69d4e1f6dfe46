"""A run with a trial for each way to end and for each nasty reason, and two retrainings that were tested."""

import random
from pathlib import Path

from mnist_ray.config import Hyperparameters, Role, Status
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record import events
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from tests.record.examples import (
    config,
    created,
    ended,
    read,
    search_ended,
    selected,
    split_opened,
    started,
    weights,
    writing,
)

REASONS = [
    *("diverged: train_loss is nan in epoch 2", "KeyError: 'x'", "a|b", "a\\|b", "two\nlines", "two\r\nlines"),
    *("two\rlines", "two\r", "\r"),
    *('says "no", twice', " spaced ", "None", "nan", "NA", "null", "1", "1.50", "True", "-", "#5", "ünï → ☃", "=1+1"),
]
SELECTED, BASELINE, SUPERSEDED = "retrain-trial-0000-seed-0", "retrain-recipe-seed-0", "retrain-trial-0001-seed-0"


def write_a_whole_run(path: Path, num_more_trials: int = 0) -> RunDir:
    with writing(path) as writer:
        writer.record(started())
        _search(writer, num_more_trials)
        _retrain(writer)
        _test(writer)
    return read(path)


def epoch(number: int, loss: float, num_correct: int, with_validation: bool = True) -> EpochMetrics:
    score = Score(loss, num_correct, 100)
    return EpochMetrics(number, 0.25, score, score if with_validation else None)


def _search(writer: RunWriter, num_more_trials: int) -> None:
    chance = random.Random(0)
    ends: list[tuple[Status | None, str | None, int]] = [
        ("complete", None, 3),
        ("pruned", "among the worst at epoch 1", 1),
        ("stopped", "max_hours 1.0 over", 2),
        ("failed", "died at once", 0),
        (None, None, 2),
        *(("failed", reason, 1) for reason in REASONS),
        *(("complete", None, 3) for _ in range(num_more_trials)),
    ]
    for number, (status, reason, num_epochs) in enumerate(ends):
        training_id = f"trial-{number:04d}"
        trial = config(learning_rate=10 ** chance.uniform(-4, -1.6), seed=number)
        writer.record(created(training_id, config=trial, number=number))
        for each in range(1, num_epochs + 1):
            metrics = epoch(each, 10 ** chance.uniform(-12, 3), chance.randrange(100))
            writer.record(events.EpochReported(id=training_id, metrics=metrics))
        if status:
            writer.record(ended(training_id, status, reason=reason, trace="Traceback" if status == "failed" else None))


def _retrain(writer: RunWriter) -> None:
    roles: dict[str, Role] = {SELECTED: "selected", BASELINE: "baseline"}
    plans = tuple(events.PlannedRetraining(training_id, role, config(seed=0)) for training_id, role in roles.items())
    hyperparameters = Hyperparameters(learning_rate=0.003, dropout=0.1, batch_size=64)
    number = writer.publish(search_ended())
    writer.record(selected(rests_on=number, hyperparameters=hyperparameters, score=0.03, retrainings=plans))
    for training_id in (SUPERSEDED, BASELINE, SELECTED):
        writer.record(created(training_id, "retrain", config=config(seed=0)))
        for each in (1, 2, 3):
            metrics = epoch(each, 0.1 / each, 99, with_validation=False)
            writer.record(events.EpochReported(id=training_id, metrics=metrics))
        model = writer.put_blob(weights(training_id), "model")
        writer.record(ended(training_id, workers=2, model=model))


def _test(writer: RunWriter) -> None:
    writer.record(split_opened())
    scores = {
        training_id: {
            "test": events.TestScore(
                Score(0.02, num_correct, 360), writer.put_blob(f"logits of {training_id}".encode(), "logits")
            )
        }
        for training_id, num_correct in ((SELECTED, 357), (BASELINE, 354))
    }
    writer.record(events.TestScored(scores=scores, examples={}, elapsed_s=0.5))
