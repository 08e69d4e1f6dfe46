"""Confusion and calibration are those of hand-worked cases and of scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.models import retrained_models
from mnist_ray.record.predictions import Predictions, ensemble, images_of_test, predictions
from tests.report.made_up import NUM_TEST, made_up_spec, make_up


def some(labels: list[int], predicted: list[int], confidence: list[float]) -> Predictions:
    """Return predictions of these confidences, above 0.1; the other classes share the rest."""
    probabilities = np.repeat(((1 - np.array(confidence)) / 9)[:, None], 10, axis=1)
    probabilities[np.arange(len(labels)), predicted] = confidence
    return Predictions(np.array(labels, dtype=np.uint8), np.log(np.maximum(probabilities, 1e-300)))


def test_calibration_error_by_hand() -> None:
    """Two of four right at 0.95: gap 0.45; one of one right at 0.55: gap 0.45; weights 4/5 and 1/5."""
    found = some([1, 2, 3, 4, 5], [1, 2, 0, 0, 5], [0.95, 0.95, 0.95, 0.95, 0.55])
    assert found.calibration_error() == pytest.approx(0.45)
    assert [each.num_examples for each in found.reliability()] == [1, 4]


def test_gaps_of_both_signs_add_up() -> None:
    """Full confidence has a bin, too."""
    found = some([1, 1, 2, 2], [1, 0, 2, 2], [1.0, 1.0, 0.5, 0.5])
    assert found.calibration_error() == pytest.approx(0.5)


def test_confusion_matches_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 10, 500), random.integers(0, 10, 500)
    found = some(labels.tolist(), predicted.tolist(), [1.0] * 500).confusion()
    assert (found == confusion_matrix(labels, predicted, labels=range(10))).all()


def test_ensemble_takes_the_mean_probability() -> None:
    """The second model is sure, the first is not: 0.6 and 0.04 for class 1, 0.044 and 0.64 for class 2."""
    together = ensemble([some([2], [1], [0.6]), some([2], [2], [0.64])])
    assert together.predicted.tolist() == [2]
    assert together.confidence[0] == pytest.approx((0.4 / 9 + 0.64) / 2)
    assert together.losses[0] == pytest.approx(-np.log((0.4 / 9 + 0.64) / 2))
    assert together.score.num_correct == 1


def test_losses_are_cross_entropies() -> None:
    found = some([3, 1], [3, 0], [0.8, 0.55])
    assert found.losses == pytest.approx([-np.log(0.8), -np.log(0.05)])
    assert found.score.loss == pytest.approx(found.losses.mean())


def test_predictions_are_read_back(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path))
    images = images_of_test(run)
    assert images is not None
    for model in retrained_models(run.state):
        found = predictions(run, model.training.id)
        assert found is not None
        assert len(found.labels) == NUM_TEST
        assert found.score.num_correct == model.scores["test"].num_correct
        assert found.score.loss == pytest.approx(model.scores["test"].loss)
        wrong = np.flatnonzero(~found.is_right)
        assert set(wrong) <= set(images.missed)
        assert images.image(int(wrong[0])).shape == (28, 28)


def test_damaged_logits_are_named(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path))
    assert run.state.tested is not None
    training_id, tests = next(iter(run.state.tested.scores.items()))
    run.blob_path(tests["test"].logits).write_bytes(b"no logits")
    with pytest.raises(CorruptFileError, match=tests["test"].logits):
        predictions(run, training_id)


def test_untested_run_has_no_predictions(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path), until="retrained")
    assert images_of_test(run) is None
    assert predictions(run, "retrain-baseline-seed-0") is None
