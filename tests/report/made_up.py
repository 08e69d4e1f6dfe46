"""Runs whose record is written from a formula: no training, so that a test can foresee what a report says of them."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors.numpy import save
from scipy.special import log_softmax

from mnist_ray import __version__
from mnist_ray.config import Hyperparameters, JobSpec, Retrain, Role, Status, TrainingConfig, parse_spec
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import (
    ClusterFacts,
    ConfigurationSelected,
    DataFacts,
    EpochReported,
    Event,
    FinalEnded,
    FinalStarted,
    PlannedRetraining,
    Provenance,
    RetrainingEnded,
    SearchEnded,
    SearchStarted,
    SessionStarted,
    TestOpened,
    TestScore,
    TestScored,
    TrainingCreated,
    TrainingEnded,
)
from mnist_ray.record.lease import owned
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.selection import final_trainings, select
from mnist_ray.record.state import RunState
from mnist_ray.record.study import SearchStudy, seed_of_trial
from mnist_ray.record.writer import RunWriter
from mnist_ray.training.checkpoint import model_to_bytes
from mnist_ray.training.model import MnistCNN

NUM_TEST = 2000
NUM_SPLIT = 180  # examples of the training and of the validation split

Loss = Callable[[TrainingConfig], float]  # of a configuration after all epochs, without noise
Until = Literal["started", "searched", "finished", "selected", "retrained", "tested"]


def sensible_loss(config: TrainingConfig) -> float:
    """Return a bowl with its bottom inside the usual space: learning rate 0.002, dropout 0.3, any batch size."""
    away = 0.15 * math.log(config.learning_rate / 0.002) ** 2 + 1.5 * (config.dropout - 0.3) ** 2
    return float(0.05 * (1 + away))


@dataclass(frozen=True)
class Noise:
    """Standard deviations: of a validation loss over seeds, and of a test accuracy."""

    loss: float = 0.0005
    accuracy: float = 0.0005


def made_up_spec(storage: Path, **changes: Any) -> JobSpec:
    search = {"num_trials": 30, "num_epochs": 6, "early_stopping": {"grace_epochs": 2, "reduction_factor": 3.0}}
    content: dict[str, Any] = {
        "name": "made-up",
        "storage": str(storage),
        "data": {"name": "digits", "num_validation": 180},
        "search": search | changes.pop("search", {}),
        "retrain": {"num_epochs": 5, "seeds": [0, 1, 2]} | changes.pop("retrain", {}),
    }
    return parse_spec(content | changes)


def make_up(
    spec: JobSpec,
    loss: Loss = sensible_loss,
    noise: Noise = Noise(),
    until: Until = "tested",
    with_search: bool = True,
    selected_accuracy: float = 0.985,
    baseline_accuracy: float = 0.98,
    failures: Sequence[int] = (),
    reason: str = "RuntimeError: made up",
) -> RunDir:
    """Write the record of a run of `spec`. failures: the trials that fail in their first epoch, for `reason`."""
    run = RunDir(Path(spec.storage) / spec.name)
    with owned(run, when_lost=lambda: None) as writer:
        maker = Maker(spec, writer, loss, noise)
        steps: dict[Until, Callable[[], None]] = {
            "started": maker.start,
            "searched": lambda: maker.search(failures, reason) if with_search else None,
            "finished": lambda: maker.final() if with_search else None,
            "selected": lambda: maker.select(with_search),
            "retrained": maker.retrain,
            "tested": lambda: maker.test(selected_accuracy, baseline_accuracy),
        }
        for name in get_args(Until):
            steps[name]()
            writer.flush()  # at least one file a stage, as of a real run
            if name == until:
                break
    return run


def session_start(spec: JobSpec) -> SessionStarted:
    return SessionStarted(
        spec=spec,
        data=DataFacts("a" * 64, "b" * 64, 1437),
        versions={"mnist_ray": __version__, "python": "3", "torch": "2"},
        cluster=ClusterFacts("local", 2, 0, ("made up",)),
        provenance=Provenance("c" * 64, "d" * 40, False, "made up"),
        data_s=0.5,
    )


class Maker:
    """A writer of one stage after another."""

    def __init__(self, spec: JobSpec, writer: RunWriter, loss: Loss, noise: Noise) -> None:
        self._spec, self._writer, self._loss, self._noise = spec, writer, loss, noise
        self._state = RunState()  # that of the run as soon as everything recorded is published
        self._random = np.random.default_rng(0)

    def start(self) -> None:
        self._record(session_start(self._spec))

    def search(self, failures: Sequence[int], reason: str) -> None:
        search = self._spec.search
        self._record(SearchStarted())
        study = SearchStudy(self._spec, [])
        rule, rungs = search.early_stopping, []
        for number in range(search.num_trials):
            config = self._spec.training_config(
                study.suggest(), search.num_epochs, seed_of_trial(self._spec.seed, number)
            )
            created = TrainingCreated(id=f"trial-{number:04d}", stage="search", config=config, number=number)
            if number in failures:
                self._record(created)
                self._end(created.id, "failed", reason)
            else:
                final = self._final(config)
                rungs.append(final)
                is_kept = rule is None or number == 0 or final <= np.quantile(rungs, 1 / rule.reduction_factor)
                self._train(created, search.num_epochs if rule is None or is_kept else rule.grace_epochs, final)
            trial = self._state.training(created.id)
            assert trial is not None
            study.tell(trial)
        self._record(SearchEnded(num_trials=search.num_trials, out_of_time=False, used_s=36.0, elapsed_s=36.0))

    def final(self) -> None:
        planned = final_trainings(self._spec, self._state.trainings("search"))
        if not planned:
            return
        ids = tuple(plan.id for plan in planned)
        self._record(FinalStarted(trainings=ids))
        for plan in planned:
            created = TrainingCreated(id=plan.id, stage="final", config=plan.config, of=plan.of)
            self._train(created, self._spec.final_epochs)
        rests_on = self._state.number_of(SearchEnded)
        self._record(FinalEnded(trainings=ids, rests_on=rests_on, elapsed_s=2.0))

    def select(self, with_search: bool) -> None:
        searched, finals = self._state.trainings("search"), self._state.trainings("final")
        found = select(self._spec, searched, finals) if with_search else None
        values = self._spec.baseline
        if found is not None:
            names = Hyperparameters.model_fields
            values = Hyperparameters(**{name: getattr(found.training.config, name) for name in names})
        trial = found.training.id if found else None
        self._record(
            ConfigurationSelected(
                training=trial,
                hyperparameters=values,
                score=found.score if found else None,
                final=found.final if found else None,
                is_complete=found is None or found.is_complete,
                retrainings=self._plans(trial, values),
                rests_on=self._state.number_of(SearchEnded),
            )
        )

    def _plans(self, trial: str | None, values: Hyperparameters) -> tuple[PlannedRetraining, ...]:
        """Plan the selected configuration on every seed, then the baseline unless it is the selected one."""
        name = f"retrain-{trial}" if trial else "retrain-baseline"
        sides: list[tuple[str, Role, Hyperparameters]] = [(name, "selected", values)]
        if trial and values == self._spec.baseline:
            sides = [("retrain-baseline", "selected = baseline", values)]
        elif trial and self._retrain.baseline:
            sides.append(("retrain-baseline", "baseline", self._spec.baseline))
        return tuple(
            PlannedRetraining(f"{name}-seed-{seed}", role, self._spec.training_config(side, self._num_retrained, seed))
            for name, role, side in sides
            for seed in self._retrain.seeds
        )

    @property
    def _num_retrained(self) -> int:
        return self._retrain.num_epochs

    @property
    def _retrain(self) -> Retrain:
        assert self._spec.retrain is not None
        return self._spec.retrain

    def _planned(self) -> tuple[PlannedRetraining, ...]:
        assert self._state.selected is not None
        return self._state.selected.retrainings

    def retrain(self) -> None:
        model = self._writer.put_blob(model_to_bytes(MnistCNN(0.25)), "model")
        for plan in self._planned():
            created = TrainingCreated(id=plan.id, stage="retrain", config=plan.config)
            self._train(created, self._num_retrained, model=model)
        rests_on = self._state.number_of(ConfigurationSelected)
        self._record(RetrainingEnded(rests_on=rests_on, elapsed_s=3.0))

    def test(self, selected_accuracy: float, baseline_accuracy: float) -> None:
        planned = self._planned()
        models = tuple(plan.id for plan in planned)
        self._record(TestOpened(data=self._spec.data.name, also=(), models=models))
        labels = np.random.default_rng(1).integers(0, 10, NUM_TEST)  # one test split for all runs
        logits = {
            plan.id: self._logits(labels, baseline_accuracy if plan.role == "baseline" else selected_accuracy)
            for plan in planned
        }
        missed = np.flatnonzero(np.any([each.argmax(axis=1) != labels for each in logits.values()], axis=0))
        images = self._random.integers(0, 256, (len(missed), 28, 28)).astype(np.uint8)
        tensors: dict[str, np.ndarray] = {"labels": labels.astype(np.uint8), "missed": missed, "missed_images": images}
        examples = {"test": self._writer.put_blob(save(tensors), "examples")}
        scores = {training_id: {"test": self._score(each, labels)} for training_id, each in logits.items()}
        self._record(TestScored(scores=scores, examples=examples, elapsed_s=0.1))

    def _record(self, event: Event) -> None:
        self._state.apply(Numbered(self._writer.record(event), event))

    def _final(self, config: TrainingConfig) -> float:
        return self._loss(config) + self._noise.loss * float(self._random.standard_normal())

    def _train(
        self, created: TrainingCreated, num_epochs: int, final: float | None = None, model: str | None = None
    ) -> None:
        final = self._final(created.config) if final is None else final
        losses = [final * (1 + 1 / epoch) for epoch in range(1, num_epochs + 1)]
        is_complete = num_epochs == created.config.num_epochs
        for event in training_events(created, losses):
            self._record(event)
        reason = None if is_complete else f"among the worst at epoch {num_epochs}"
        self._end(created.id, "complete" if is_complete else "pruned", reason, model)

    def _end(self, training_id: str, status: Status, reason: str | None, model: str | None = None) -> None:
        self._record(TrainingEnded(id=training_id, status=status, reason=reason, model=model))

    def _logits(self, labels: np.ndarray, accuracy: float) -> np.ndarray:
        accuracy += self._noise.accuracy * float(self._random.standard_normal())
        predicted = labels.copy()
        wrong = self._random.choice(NUM_TEST, size=round(NUM_TEST * (1 - min(accuracy, 1.0))), replace=False)
        predicted[wrong] = (labels[wrong] + self._random.integers(1, 10, len(wrong))) % 10
        logits = self._random.standard_normal((NUM_TEST, 10)).astype(np.float32)
        rows = np.arange(NUM_TEST)
        logits[rows, predicted] += 6
        logits[rows, predicted] = np.maximum(logits[rows, predicted], logits.max(axis=1))
        return logits

    def _score(self, logits: np.ndarray, labels: np.ndarray) -> TestScore:
        content = io.BytesIO()
        np.save(content, logits, allow_pickle=False)
        num_correct = int((logits.argmax(axis=1) == labels).sum())
        loss = -float(log_softmax(logits.astype(np.float64), axis=1)[np.arange(NUM_TEST), labels].mean())
        return TestScore(Score(loss, num_correct, NUM_TEST), self._writer.put_blob(content.getvalue(), "logits"))


def training_events(created: TrainingCreated, losses: Sequence[float]) -> list[Event]:
    """Return a training's events up to its end, with one epoch for each loss; a retraining has no validation split."""
    events: list[Event] = [created]
    for epoch, loss in enumerate(losses, start=1):
        score = Score(loss, round(NUM_SPLIT * (1 - min(0.9, loss / 4))), NUM_SPLIT)
        validation = None if created.stage == "retrain" else score
        events.append(EpochReported(id=created.id, metrics=EpochMetrics(epoch, 0.01, score, validation)))
    return events
