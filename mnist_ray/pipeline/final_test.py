"""The final test: each model's answers, and what a report needs to show the errors."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors.numpy import save

from mnist_ray.data import LabelledImages
from mnist_ray.pipeline.prediction import trained_model
from mnist_ray.record.events import TestScore
from mnist_ray.record.writer import RunWriter
from mnist_ray.training.evaluation import logits_of, score_of


def score_models(
    writer: RunWriter, training_ids: Sequence[str], tests: Mapping[str, LabelledImages]
) -> tuple[dict[str, dict[str, TestScore]], dict[str, str]]:
    """Score models on tests and keep every logit, and the images that a model took for another.

    Returns the scores by training and test, and by test the blob of its examples as safetensors: labels, (N,) uint8, or
    uint16 beyond 256 classes;
    missed, (M,) int64, the examples that at least one model got wrong; missed_images, (M, 28, 28) uint8.
    Raises OSError, CorruptFileError.
    """
    models = {training_id: trained_model(writer.run, training_id) for training_id in training_ids}
    scores: dict[str, dict[str, TestScore]] = {training_id: {} for training_id in training_ids}
    blobs: dict[str, str] = {}
    for name, examples in tests.items():
        is_missed = np.zeros(len(examples), dtype=bool)
        for training_id, model in models.items():
            logits = logits_of(model, examples)
            is_missed |= logits.argmax(axis=1) != examples.labels
            content = io.BytesIO()
            np.save(content, logits, allow_pickle=False)
            blob = writer.put_blob(content.getvalue(), "logits")
            scores[training_id][name] = TestScore(score_of(logits, examples), blob)
        missed = np.flatnonzero(is_missed)
        tensors: dict[str, np.ndarray] = {
            "labels": examples.labels.astype(np.uint8 if examples.labels.max() < 256 else np.uint16),
            "missed": missed,
            "missed_images": np.ascontiguousarray(examples.images[missed, 0]),
        }
        blobs[name] = writer.put_blob(save(tensors), "examples")
    return scores, blobs
