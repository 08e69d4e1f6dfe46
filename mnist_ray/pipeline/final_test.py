"""The test stage's own work: what each model says of a test, and what a report needs to show its errors."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save

from mnist_ray.data import LabelledImages
from mnist_ray.pipeline.prediction import trained_model
from mnist_ray.record.rundir import RunDir
from mnist_ray.training.evaluation import logits_of, score_of


class TestRecorder:
    """Scores the models of a run; every logit goes on record, and so do the images that a model took for another."""

    def __init__(self, run: RunDir, training_ids: Sequence[str]) -> None:
        self._run = run
        self._models = {training_id: trained_model(run, training_id) for training_id in training_ids}
        self._examples: dict[str, str] = {}

    @property
    def evidence(self) -> dict[str, Any]:
        """For the record: under "examples" a blob for each test, as safetensors.

        labels: (N,) uint8; missed: (M,) int64, the examples that at least one model got wrong;
        missed_images: (M, 28, 28) uint8.
        """
        return {"examples": self._examples}

    def scores(self, name: str, examples: LabelledImages) -> dict[str, dict[str, Any]]:
        """name: "test" or a second test's. By model: <name>_loss, <name>_accuracy, <name>_correct, <name>_examples,
        and under <name>_logits the blob of what it said, (N, 10) float32 in the test's order, as npy.
        """
        logits = {training_id: logits_of(model, examples) for training_id, model in self._models.items()}
        self._keep_examples(name, examples, logits)
        return {
            training_id: {**score_of(said, examples, name), f"{name}_logits": self._put(said)}
            for training_id, said in logits.items()
        }

    def _put(self, logits: np.ndarray) -> str:
        content = io.BytesIO()
        np.save(content, logits, allow_pickle=False)
        return self._run.put_blob(content.getvalue(), "logits")

    def _keep_examples(self, name: str, examples: LabelledImages, logits: dict[str, np.ndarray]) -> None:
        is_missed = np.zeros(len(examples), dtype=bool)
        for said in logits.values():
            is_missed |= said.argmax(axis=1) != examples.labels
        missed = np.flatnonzero(is_missed)
        tensors: dict[str, np.ndarray] = {
            "labels": examples.labels.astype(np.uint8),
            "missed": missed,
            "missed_images": np.ascontiguousarray(examples.images[missed, 0]),
        }
        self._examples[name] = self._run.put_blob(save(tensors), "examples")
