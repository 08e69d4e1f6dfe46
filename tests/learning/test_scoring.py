"""What a saved model is said to do on examples is what it did, and its answers are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_ray.config import TrainingConfig
from mnist_ray.files import CorruptFileError
from mnist_ray.learning.checkpoint import model_to_bytes
from mnist_ray.learning.data import LabelledImages
from mnist_ray.learning.scoring import load_model, score_model
from mnist_ray.learning.training import Examples, TrainingData, TrainState, evaluate, fit, predict, score_columns

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(few_digits: TrainingData) -> TrainState:
    config = TrainingConfig(num_epochs=3, batch_size=32)
    state = TrainState.initial(config, few_digits.statistics)
    [*_] = fit(state, few_digits, config)
    return state


@pytest.fixture
def model_path(trained: TrainState, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_to_bytes(trained.model))
    return path


def test_a_saved_model_scores_as_the_one_in_training_did(
    trained: TrainState, model_path: Path, digits: LabelledImages
) -> None:
    """On 1,300 digits, three batches; in another layout in memory, so that losses agree to a few units of float32."""
    examples = digits.take(np.arange(100, 1400))
    expected = score_columns("test", evaluate(trained.model, Examples.of(examples, CPU)))
    scored = score_model(model_path, examples)
    assert scored.pop("test_loss") == pytest.approx(expected.pop("test_loss"), rel=1e-6)
    assert scored == expected
    assert scored["test_examples"] == 1300
    assert 0.3 < scored["test_accuracy"] < 1


def test_the_logits_are_kept_in_the_order_of_the_examples(model_path: Path, digits: LabelledImages) -> None:
    examples = digits.take(np.arange(600))
    logits_path = model_path.parent / "logits" / "model.test_logits.npy"
    scored = score_model(model_path, examples, logits_path)
    logits = np.load(logits_path, allow_pickle=False)
    assert (logits.shape, logits.dtype) == ((600, 10), np.float32)
    assert int((logits.argmax(axis=1) == examples.labels).sum()) == scored["test_correct"]
    of_one = predict(load_model(model_path), torch.from_numpy(examples.images[550:551]))
    np.testing.assert_allclose(logits[550:551], of_one, rtol=1e-4, atol=1e-4)


def test_a_damaged_model_is_refused_by_name(tmp_path: Path, digits: LabelledImages) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"garbage")
    with pytest.raises(CorruptFileError, match=r"model\.safetensors: is not a model of this project"):
        score_model(path, digits)
    with pytest.raises(FileNotFoundError):
        score_model(tmp_path / "absent.safetensors", digits)
