"""Confusion and calibration are those of hand-worked cases and of scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from mnist_ray.errors import CorruptFileError
from mnist_ray.report.analysis.predictions import Predictions, images_of_test, predictions
from mnist_ray.report.models import retrained_models
from tests.report.made_up import NUM_TEST, made_up_spec, make_up


def some(labels: list[int], predicted: list[int], confidence: list[float]) -> Predictions:
    return Predictions(np.array(labels, dtype=np.uint8), np.array(predicted), np.array(confidence))


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


def test_predictions_are_read_back(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path))
    images = images_of_test(run)
    assert images is not None
    for model in retrained_models(run.state):
        found = predictions(run, model.training.id)
        assert found is not None
        assert len(found.labels) == NUM_TEST
        assert int(found.is_right.sum()) == model.scores["test"].num_correct
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
