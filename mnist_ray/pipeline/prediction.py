"""What a finished run's models say: on the test split again, and on image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_ray import data
from mnist_ray.config import parse_spec
from mnist_ray.data.images import read_image
from mnist_ray.errors import SpecError
from mnist_ray.record.rundir import RunDir, runs_in
from mnist_ray.storage.files import StoragePath
from mnist_ray.training.checkpoint import model_from_bytes
from mnist_ray.training.evaluation import logits_of, score_of
from mnist_ray.training.loop import predict
from mnist_ray.training.model import MnistCNN


def evaluate_run(run: RunDir, data_dir: Path | None = None) -> dict[str, dict[str, Any]]:
    """The scores of a finished run's models on its test split, by training; nothing is recorded.

    Raises SpecError for a run whose test split is still sealed, DataError.
    """
    started, tested = run.stage("started"), run.stage("tested")
    if started is None or tested is None:
        raise SpecError(f"{run.path} has not unsealed its test split yet: finish it with 'mnist-ray run' first")
    spec = parse_spec(started["spec"], str(run.path))
    folder = data_dir or data.data_dir_of(spec.data.dir)
    data.fetch(spec.data.name, folder)
    examples = data.load_test(spec.data.name, folder)
    return {
        training_id: score_of(logits_of(trained_model(run, training_id), examples), examples)
        for training_id in tested["scores"]
    }


def trained_model(run: RunDir, training_id: str) -> MnistCNN:
    """A complete retraining's network. Raises CorruptFileError, SpecError if there is none."""
    content = run.model_content(training_id)
    if content is None:
        raise SpecError(f"{run.path} has no trained model {training_id}: finish it with 'mnist-ray run' first")
    return model_from_bytes(content)


def predict_images(run: RunDir, paths: Sequence[Path]) -> np.ndarray:
    """Probabilities (images, 10) of the run's choice for image files. Raises SpecError, ImageFileError."""
    images = np.stack([read_image(path) for path in paths])
    model = model_of_choice(run)
    return torch.softmax(predict(model, torch.from_numpy(images)), dim=1).numpy()


def model_of_choice(run: RunDir) -> MnistCNN:
    """The choice's network, of the first seed that was trained. Raises SpecError if there is none yet."""
    planned = (run.stage("chosen") or {}).get("retrainings", [])
    for plan in planned:
        if plan["role"].startswith("choice") and run.model_content(plan["id"]):
            return trained_model(run, plan["id"])
    raise SpecError(f"{run.path} has no trained model yet: finish it with 'mnist-ray run' first")


def latest_finished_run(storage: StoragePath) -> RunDir:
    """Raises SpecError if there is none."""
    for run in runs_in(storage):
        if run.stage("tested"):
            return run
    raise SpecError(f"{storage.absolute()} holds no finished run: make one with 'mnist-ray run', or give --storage")
