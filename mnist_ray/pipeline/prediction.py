"""The models of a finished run: scored on the test split again, and applied to image files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mnist_ray import data
from mnist_ray.data.images import read_image
from mnist_ray.errors import CorruptFileError, ImageFileError, SpecError
from mnist_ray.metrics import Score
from mnist_ray.record.rundir import RunDir, readable_runs
from mnist_ray.storage.files import StoragePath
from mnist_ray.training.checkpoint import model_from_bytes
from mnist_ray.training.evaluation import logits_of, predict, score_of
from mnist_ray.training.model import MnistCNN


def evaluate_run(run: RunDir, data_dir: Path | None = None) -> dict[str, Score]:
    """Score a finished run's models on its test split, by training; nothing is recorded.

    Raises SpecError for a run whose test was not opened, DataError.
    """
    started, tested = run.state.started, run.state.tested
    if started is None or tested is None:
        raise SpecError(f"{run} is not tested yet: finish it with 'mnist-ray run' first")
    folder = data_dir or data.data_dir_of(started.spec.data.dir)
    data.fetch(started.spec.data.name, folder)
    examples = data.load_test(started.spec.data.name, folder)
    return {
        training_id: score_of(logits_of(trained_model(run, training_id), examples), examples)
        for training_id in tested.scores
    }


def trained_model(run: RunDir, training_id: str) -> MnistCNN:
    """Return a complete retraining's network. Raises CorruptFileError, SpecError if there is none."""
    content = run.model(training_id)
    if content is None:
        raise SpecError(f"{run} has no trained model {training_id}: finish it with 'mnist-ray run' first")
    return model_from_bytes(content)


def predict_images(run: RunDir, paths: Sequence[Path]) -> list[np.ndarray | ImageFileError]:
    """Return the selected model's probabilities, (10,), for each image file, or why there is no answer for it.

    Raises SpecError, CorruptFileError.
    """
    started = run.state.started
    shows_digits = started is None or data.DATA_SETS[started.spec.data.name].shows_digits
    model = selected_model(run)
    answers: list[np.ndarray | ImageFileError] = []
    for path in paths:
        try:
            image = torch.from_numpy(read_image(path, shows_digits))
        except ImageFileError as error:
            answers.append(error)
        else:
            probabilities = torch.softmax(predict(model, image[None])[0], dim=0).numpy()
            if not np.isfinite(probabilities).all():
                raise CorruptFileError(f"{run.paths.record}: {selected_training(run)} is not a usable network")
            answers.append(probabilities)
    return answers


def model_in_words(run: RunDir) -> str:
    """Return whose model `predict_images` uses: the run, its training and its data."""
    started = run.state.started
    assert started is not None
    return f"the model {selected_training(run)} of the run {run.path}, trained on {started.spec.data.name}"


def selected_model(run: RunDir) -> MnistCNN:
    """Return the selected configuration's network, of the first seed that was trained. Raises SpecError."""
    return trained_model(run, selected_training(run))


def selected_training(run: RunDir) -> str:
    """Return the retraining whose network `selected_model` returns. Raises SpecError."""
    selected = run.state.selected
    for plan in selected.retrainings if selected else ():
        if plan.role.startswith("selected") and run.model(plan.id):
            return plan.id
    raise SpecError(f"{run} has no trained model yet: finish it with 'mnist-ray run' first")


def latest_finished_run(storage: StoragePath, on_damage: Callable[[str], object]) -> RunDir:
    """Return the newest run below a storage folder that is tested; `on_damage` gets a line about each damaged one.

    Raises SpecError if there is none.
    """
    for run in readable_runs(storage, on_damage):
        if run.state.tested:
            return run
    raise SpecError(f"{storage.absolute()} holds no finished run: make one with 'mnist-ray run', or give --storage")
