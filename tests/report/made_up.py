"""Runs whose record is written from a formula: no training, so that a test knows what a report must say of them."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mnist_ray import __version__
from mnist_ray.config import Hyperparameters, JobSpec, parse_spec
from mnist_ray.pipeline.stages import Listener, Stages
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.selection import confirmations
from mnist_ray.record.study import SearchStudy, seed_of_trial
from mnist_ray.training.checkpoint import model_to_bytes
from mnist_ray.training.model import MnistCNN

NUM_TEST = 2000

Loss = Callable[[dict[str, Any]], float]  # what a configuration comes to after all epochs, without noise


def sensible_loss(config: dict[str, Any]) -> float:
    """A bowl with its bottom inside the usual space: learning rate 0.002, dropout 0.3, any batch size."""
    away = 0.15 * math.log(config["learning_rate"] / 0.002) ** 2 + 1.5 * (config["dropout"] - 0.3) ** 2
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
    until: str = "tested",
    tuned_accuracy: float = 0.985,
    recipe_accuracy: float = 0.98,
    failures: Sequence[int] = (),
    reason: str = "RuntimeError: made up",
) -> RunDir:
    """Write the record of a run of `spec`. failures: the trials that fail in their first epoch, for `reason`."""
    run = RunDir(Path(spec.storage) / spec.name)
    run.take({"host": "here", **this_process(), "pid_started": "0", "version": __version__})
    facts = {"training_sha256": "a" * 64, "split_sha256": "b" * 64, "num_training": 1437}
    run.record_stage(
        "started",
        spec=spec.model_dump(mode="json"),
        data=facts,
        versions={"mnist_ray": __version__, "python": "3", "torch": "2"},
        cluster={"cpus": 2, "gpus": 0, "processors": ["made up"]},
        provenance={"source_sha256": "c" * 64, "git_commit": "d" * 40, "git_is_dirty": False, "hardware": {"gpus": []}},
        data_s=0.5,
    )
    maker = Maker(spec, run, loss, noise)
    if until == "started":
        return run
    for stage in ("searched", "confirmed", "chosen", "retrained", "tested"):
        maker.stage(stage, failures, reason, {"choice": tuned_accuracy, "baseline": recipe_accuracy})
        if stage == until:
            break
    return run


class Maker:
    """Writes one stage after another."""

    def __init__(
        self,
        spec: JobSpec,
        run: RunDir,
        loss: Loss = sensible_loss,
        noise: Noise = Noise(),
    ) -> None:
        self._spec, self._run, self._loss, self._noise = spec, run, loss, noise
        self._random = np.random.default_rng(0)

    def stage(self, stage: str, failures: Sequence[int], reason: str, accuracies: dict[str, float]) -> None:
        if stage == "searched":
            self._search(failures, reason)
        elif stage == "confirmed":
            for plan in confirmations(self._spec, self._run.trainings("search")):
                self._train(plan.id, "confirm", plan.config, self._spec.search.num_epochs, of=plan.trial.id)
            if self._spec.confirm:
                self._run.record_stage("confirmed", trainings=[], elapsed_s=2.0)
        elif stage == "chosen":
            self._choose()
        elif stage == "retrained":
            self._retrain()
        else:
            self._test(accuracies)

    def finish(self) -> None:
        """What comes after a choice on record."""
        self._retrain()
        self._test({"choice": 0.985, "baseline": 0.98})

    def _search(self, failures: Sequence[int], reason: str) -> None:
        self._run.record_stage("searching")
        study = SearchStudy(self._spec, [])
        rule, rungs = self._spec.search.early_stopping, []
        for number in range(self._spec.search.num_trials):
            values = Hyperparameters(**{**self._spec.recipe.model_dump(), **study.suggest()})
            config = self._spec.training(
                values, self._spec.search.num_epochs, seed_of_trial(self._spec.seed, number)
            ).model_dump()
            training_id = f"trial-{number:04d}"
            if number in failures:
                self._run.record_asked(training_id, "search", config, number=number)
                self._end(training_id, "failed", reason)
            else:
                final = self._final(config)
                rungs.append(final)
                is_kept = rule is None or final <= np.quantile(rungs, 1 / rule.reduction_factor)
                num_epochs = self._spec.search.num_epochs if rule is None or is_kept else rule.grace_epochs
                self._train(training_id, "search", config, num_epochs, final, number=number)
            training = self._run.training(training_id)
            assert training is not None
            study.tell(training)
        num_trials = self._spec.search.num_trials
        self._run.record_stage("searched", num_trials=num_trials, out_of_time=False, used_hours=0.01, elapsed_s=36.0)

    def _final(self, config: dict[str, Any]) -> float:
        return self._loss(config) + self._noise.loss * float(self._random.standard_normal())

    def _train(
        self,
        training_id: str,
        stage: str,
        config: dict[str, Any],
        num_epochs: int,
        final: float | None = None,
        model: str | None = None,
        **known: Any,
    ) -> None:
        self._run.record_asked(training_id, stage, config, **known)
        final = self._final(config) if final is None else final
        for epoch in range(1, num_epochs + 1):
            self._run.record_epoch(training_id, self._row(epoch, final * (1 + 1 / epoch), stage != "retrain"))
        status = "complete" if num_epochs == config["num_epochs"] else "pruned"
        reason = None if status == "complete" else f"among the worst at epoch {num_epochs}"
        self._end(training_id, status, reason, model=model)

    def _end(self, training_id: str, status: Any, reason: str | None, model: str | None = None) -> None:
        facts = {"workers": 1, "threads": 1, "device": "cpu", "num_failures": 0, "trace": None, "model": model}
        self._run.record_ended(training_id, status, reason, **facts)

    @staticmethod
    def _row(epoch: int, loss: float, with_validation: bool) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": epoch, "elapsed_s": 0.01}
        for part in ("train", "val") if with_validation else ("train",):
            right = round(180 * (1 - min(0.9, loss / 4)))
            row |= {f"{part}_loss": loss, f"{part}_accuracy": right / 180}
            row |= {f"{part}_correct": right, f"{part}_examples": 180}
        return row

    def _choose(self) -> None:
        Stages(self._spec, self._run, Listener()).choose(with_search=True)

    def _plans(self) -> list[dict[str, Any]]:
        chosen = self._run.stage("chosen")
        assert chosen is not None
        plans: list[dict[str, Any]] = chosen["retrainings"]
        return plans

    def _retrain(self) -> None:
        model = self._run.put_blob(model_to_bytes(MnistCNN(0.25)), "model")
        for plan in self._plans():
            self._train(plan["id"], "retrain", plan["config"], self._spec.retrain.num_epochs, model=model)
        self._run.record_stage("retrained", elapsed_s=3.0)

    def _test(self, accuracies: dict[str, float]) -> None:
        ids = [plan["id"] for plan in self._plans()]
        self._run.record_stage("unsealed", data=self._spec.data.name, also=[], models=ids)
        labels = np.random.default_rng(1).integers(0, 10, NUM_TEST)  # one test split for all runs
        logits = {
            plan["id"]: self._logits(labels, accuracies["baseline" if plan["role"] == "baseline" else "choice"])
            for plan in self._plans()
        }
        missed = np.flatnonzero(np.any([said.argmax(axis=1) != labels for said in logits.values()], axis=0))
        images = self._random.integers(0, 256, (len(missed), 28, 28)).astype(np.uint8)
        tensors: dict[str, np.ndarray] = {"labels": labels.astype(np.uint8), "missed": missed, "missed_images": images}
        examples = {"test": self._run.put_blob(save(tensors), "examples")}
        scores = {training_id: self._score(said, labels) for training_id, said in logits.items()}
        self._run.record_stage("tested", scores=scores, examples=examples, elapsed_s=0.1)

    def _logits(self, labels: np.ndarray, accuracy: float) -> np.ndarray:
        accuracy += self._noise.accuracy * float(self._random.standard_normal())
        said = labels.copy()
        wrong = self._random.choice(NUM_TEST, size=round(NUM_TEST * (1 - min(accuracy, 1.0))), replace=False)
        said[wrong] = (labels[wrong] + self._random.integers(1, 10, len(wrong))) % 10
        logits = self._random.standard_normal((NUM_TEST, 10)).astype(np.float32)
        logits[np.arange(NUM_TEST), said] += 6
        logits[np.arange(NUM_TEST), said] = np.maximum(logits[np.arange(NUM_TEST), said], logits.max(axis=1))
        return logits

    def _score(self, said: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        right = int((said.argmax(axis=1) == labels).sum())
        content = io.BytesIO()
        np.save(content, said, allow_pickle=False)
        blob = self._run.put_blob(content.getvalue(), "logits")
        known = {"test_correct": right, "test_examples": NUM_TEST, "test_logits": blob}
        return {"test_loss": 0.05, "test_accuracy": right / NUM_TEST, **known}
