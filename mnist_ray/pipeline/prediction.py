"""The models of a finished run: scored on the test split again, and applied to image files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mnist_ray import data
from mnist_ray.data.images import MOST_BYTES, read_image
from mnist_ray.data.likeness import Likeness
from mnist_ray.data.own_images.grey import decoded
from mnist_ray.errors import CorruptFileError, DataError, ImageFileError, SpecError
from mnist_ray.metrics import Score
from mnist_ray.pipeline.run_data import load_data_of
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import read_bounded
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
    keys = started.spec.data
    examples = data.load_test_half(keys.name, folder, keys.transpose, keys.test_fraction)
    if started.data.test_sha256 not in (None, data.content_sha256(examples)):
        raise DataError(f"data.dir {folder}: these are not the test images of {run}: name the folder of its images")
    return {
        training_id: score_of(logits_of(trained_model(run, training_id), examples), examples)
        for training_id in tested.scores
    }


def trained_model(run: RunDir, training_id: str) -> MnistCNN:
    """Return a complete retraining's network. Raises CorruptFileError, SpecError if there is none."""
    content = run.weights(training_id)
    if content is None:
        raise SpecError(f"{run} has no trained model {training_id}: finish it with 'mnist-ray run' first")
    return model_from_bytes(content)


# An answer with a smaller probability is unsure. Chow 1970, "On Optimum Recognition Error and Reject Tradeoff": below
# 1 - c it is better to refuse, where a refusal costs c times as much as an error; c is a tenth here.
SURE_FROM = 0.9


@dataclass(frozen=True)
class AskedModel:
    """The model of a run that answers pictures."""

    run: RunDir
    training_id: str
    data_set: str
    class_names: list[str]
    test_score: Score | None  # None where the run is not tested

    @classmethod
    def of(cls, run: RunDir) -> "AskedModel":
        """Return the selected model of a run. Raises SpecError for a run without one, CorruptFileError."""
        training_id = selected_training(run)
        started = run.state.started
        assert started is not None
        names = list(started.class_names)
        return cls(run, training_id, started.spec.data.name, names, score_on_test(run, training_id))

    def __str__(self) -> str:
        quality = "not tested yet"
        if self.test_score:
            right, total = self.test_score.num_correct, self.test_score.num_examples
            quality = f"right on {right:,} of its {total:,} test images ({100 * self.test_score.accuracy:.2f} %)"
        return f"the model {self.training_id} of the run {self.run}, trained on {self.data_set}, {quality}"

    def columns(self) -> dict[str, Any]:
        """Return what there is to know, for programs."""
        return {
            "run": str(self.run),
            "training": self.training_id,
            "data_set": self.data_set,
            "class_names": self.class_names,
            "test_accuracy": self.test_score.accuracy if self.test_score else None,
        }


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer of a model to a picture."""

    image: npt.NDArray[np.uint8]  # (28, 28), what the network saw
    probabilities: npt.NDArray[np.float32]  # (classes,)
    is_like_training_images: bool | None  # None where these are not at hand

    @property
    def ranking(self) -> list[int]:
        """The classes, the most probable one first."""
        return [int(each) for each in np.argsort(-self.probabilities, kind="stable")]

    @property
    def is_unsure(self) -> bool:
        """Whether the answer is better not relied on.

        Its probability is below SURE_FROM, or the picture does not look like the training images: a network is as
        certain of what it has never seen (Nguyen, Yosinski and Clune 2015, "Deep Neural Networks are Easily Fooled").
        """
        return self.is_like_training_images is False or bool(self.probabilities.max() < SURE_FROM)


def predict_images(
    run: RunDir, paths: Sequence[Path], data_dir: Path | None = None
) -> list[Prediction | ImageFileError]:
    """Return the selected model's answer to each image file, or why there is none.

    data_dir: where the data sets lie, for the comparison with the training images. Raises SpecError, CorruptFileError.
    """
    model = selected_model(run)
    started = run.state.started
    assert started is not None
    likeness = _likeness(run, data_dir)
    answers: list[Prediction | ImageFileError] = []
    for path in paths:
        try:
            image = _read_picture(path, started.spec.data.name)
        except ImageFileError as error:
            answers.append(error)
            continue
        probabilities = torch.softmax(predict(model, torch.from_numpy(image)[None])[0], dim=0).numpy()
        if not np.isfinite(probabilities).all():
            raise CorruptFileError(f"{run.paths.record}: {selected_training(run)} is not a usable network")
        answers.append(Prediction(image[0], probabilities, likeness.holds_for(image) if likeness else None))
    return answers


def _read_picture(path: Path, data_name: str) -> np.ndarray:
    """Bring a picture into the form of a data set's images, (1, 28, 28) uint8. Raises ImageFileError."""
    if data_name != data.OWN_IMAGES:
        return read_image(path, data.DATA_SETS[data_name].shows_digits)
    try:
        return decoded(read_bounded(path, MOST_BYTES))[None]
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{path}: {getattr(error, 'strerror', None) or error}: give an image file") from None


def _likeness(run: RunDir, data_dir: Path | None) -> Likeness | None:
    """Return what tells pictures that look like a run's training images; None where these are not at hand.

    The user's own images, of which there may be many to decode, are not read for it.
    """
    started = run.state.started
    if started is None or started.spec.data.name == data.OWN_IMAGES:
        return None
    try:
        split = load_data_of(run, data_dir).split
    except DataError:
        return None
    assert split.validation is not None
    return Likeness(split.train, split.validation)


def score_on_test(run: RunDir, training_id: str) -> Score | None:
    """Return a retraining's score on the test split; None where the run is not tested."""
    tested = run.state.tested.scores if run.state.tested else {}
    scored = tested.get(training_id, {}).get("test")
    return scored.score if scored else None


def selected_model(run: RunDir) -> MnistCNN:
    """Return the selected configuration's network, of the first seed that was trained. Raises SpecError."""
    return trained_model(run, selected_training(run))


def selected_training(run: RunDir) -> str:
    """Return the retraining whose network `selected_model` returns. Raises SpecError."""
    selected = run.state.selected
    for plan in selected.retrainings if selected else ():
        if plan.role.startswith("selected") and run.weights(plan.id):
            return plan.id
    raise SpecError(f"{run} has no trained model yet: finish it with 'mnist-ray run' first")
