"""The score of a model, and its logits."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mnist_ray.data import LabelledImages
from mnist_ray.metrics import Score
from mnist_ray.training import progress_counter
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples
from mnist_ray.training.metrics import ScoreSums, summed_loss
from mnist_ray.training.model import MnistCNN

EVALUATION_BATCH_SIZE = 500


def evaluate(model: nn.Module, examples: Examples, worker: Worker = Worker()) -> Score:
    """Score over all ranks, each example counted once: rank r takes r, r + world_size, and so on."""
    progress_counter.advance()
    sums = ScoreSums(worker.device)
    images, labels = (part[worker.rank :: worker.world_size] for part in (examples.images, examples.labels))
    for start in range(0, len(labels), EVALUATION_BATCH_SIZE):
        batch = slice(start, start + EVALUATION_BATCH_SIZE)
        logits = predict(model, images[batch])
        sums.add(summed_loss(logits, labels[batch]), logits, labels[batch])
    return sums.merged()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """images: (B, 1, 28, 28) uint8 -> logits: (B, classes), with dropout off."""
    model.eval()
    logits: Tensor = model(images)
    return logits


def logits_of(model: MnistCNN, examples: LabelledImages) -> npt.NDArray[np.float32]:
    """Compute the logits (N, classes) on the CPU, in the order of `examples`."""
    images = Examples.of(examples, torch.device("cpu")).images
    logits = torch.cat([predict(model, batch) for batch in images.split(EVALUATION_BATCH_SIZE)])
    return logits.numpy()


def score_of(logits: npt.NDArray[np.float32], examples: LabelledImages) -> Score:
    """Score logits, (N, classes), against the examples' labels; the loss is summed in float64."""
    values, labels = torch.from_numpy(logits), torch.from_numpy(examples.labels)
    return Score(
        loss=float(summed_loss(values.double(), labels)) / len(labels),
        num_correct=int((values.argmax(dim=1) == labels).sum()),
        num_examples=len(labels),
    )
