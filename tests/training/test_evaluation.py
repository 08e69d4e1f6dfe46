"""What a saved model is said to do on examples is what it did, and its answers are kept."""

import numpy as np
import pytest
import torch

from mnist_ray.config import TrainingConfig
from mnist_ray.data import LabelledImages
from mnist_ray.errors import CorruptFileError
from mnist_ray.training.checkpoint import model_from_bytes, model_to_bytes
from mnist_ray.training.evaluation import evaluate, logits_of, predict, score_of
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.model import MnistCNN

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(few_digits: TrainingData) -> TrainState:
    config = TrainingConfig(num_epochs=3, batch_size=32)
    state = TrainState.initial(config, few_digits.statistics)
    [*_] = fit(state, few_digits, config)
    return state


@pytest.fixture
def saved(trained: TrainState) -> MnistCNN:
    return model_from_bytes(model_to_bytes(trained.model))


def test_a_saved_model_scores_as_the_one_in_training_did(
    trained: TrainState, saved: MnistCNN, digits: LabelledImages
) -> None:
    """On 1,300 digits, three batches; in another layout in memory, so that losses agree to a few units of float32."""
    examples = digits.take(np.arange(100, 1400))
    expected = evaluate(trained.model, Examples.of(examples, CPU))
    scored = score_of(logits_of(saved, examples), examples)
    assert scored.loss == pytest.approx(expected.loss, rel=1e-6)
    assert scored.num_correct == expected.num_correct
    assert scored.num_examples == 1300
    assert 0.3 < scored.accuracy < 1


def test_the_logits_are_in_the_order_of_the_examples(saved: MnistCNN, digits: LabelledImages) -> None:
    examples = digits.take(np.arange(600))
    logits = logits_of(saved, examples)
    assert logits.shape == (600, 10)
    assert logits.dtype == np.float32
    assert int((logits.argmax(axis=1) == examples.labels).sum()) == score_of(logits, examples).num_correct
    of_one = predict(saved, torch.from_numpy(examples.images[550:551]))
    np.testing.assert_allclose(logits[550:551], of_one, rtol=1e-4, atol=1e-4)


def test_a_damaged_model_is_refused() -> None:
    with pytest.raises(CorruptFileError, match="is not a model of this project"):
        model_from_bytes(b"garbage")
