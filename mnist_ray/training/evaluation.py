"""Scoring a trained model on examples that it never saw, keeping what it said."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mnist_ray.data import LabelledImages
from mnist_ray.metrics import Score
from mnist_ray.training.loop import EVALUATION_BATCH_SIZE, Examples, predict
from mnist_ray.training.metrics import summed_loss
from mnist_ray.training.model import MnistCNN


def logits_of(model: MnistCNN, examples: LabelledImages) -> npt.NDArray[np.float32]:
    """(N, 10), in the order of `examples`."""
    images = Examples.of(examples, torch.device("cpu")).images
    logits = torch.cat([predict(model, batch) for batch in images.split(EVALUATION_BATCH_SIZE)])
    return logits.numpy()


def score_of(logits: npt.NDArray[np.float32], examples: LabelledImages, name: str = "test") -> dict[str, Any]:
    """logits: (N, 10) -> test_loss, test_accuracy, test_correct, test_examples; `name` in place of "test"."""
    values, labels = torch.from_numpy(logits), torch.from_numpy(examples.labels)
    score = Score(
        loss=float(summed_loss(values.double(), labels)) / len(labels),
        num_correct=int((values.argmax(dim=1) == labels).sum()),
        num_examples=len(labels),
    )
    return score.columns(name)
