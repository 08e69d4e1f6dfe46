"""Scoring a trained model on examples that it never saw, keeping what it said."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_ray.files import CorruptFileError, replace_atomic
from mnist_ray.learning.checkpoint import model_from_bytes
from mnist_ray.learning.data import LabelledImages
from mnist_ray.learning.metrics import Score, summed_loss
from mnist_ray.learning.model import MnistCNN
from mnist_ray.learning.training import EVALUATION_BATCH_SIZE, Examples, predict, score_columns


def load_model(path: Path) -> MnistCNN:
    """Raises CorruptFileError with the path, FileNotFoundError."""
    try:
        return model_from_bytes(path.read_bytes())
    except CorruptFileError as error:
        raise CorruptFileError(f"{path}: {error}") from None


def score_model(path: Path, examples: LabelledImages, logits_path: Path | None = None) -> dict[str, Any]:
    """test_loss, test_accuracy, test_correct, test_examples of the model at `path`.

    The logits, (N, 10) float32 in the order of the test split, are kept at `logits_path`.
    """
    tensors = Examples.of(examples, torch.device("cpu"))
    model = load_model(path)
    logits = torch.cat([predict(model, batch) for batch in tensors.images.split(EVALUATION_BATCH_SIZE)])
    if logits_path is not None:
        replace_atomic(logits_path, lambda beside: np.save(beside, logits.numpy(), allow_pickle=False))
    score = Score(
        loss=float(summed_loss(logits.double(), tensors.labels)) / len(tensors),
        num_correct=int((logits.argmax(dim=1) == tensors.labels).sum()),
        num_examples=len(tensors),
    )
    return score_columns("test", score)
