"""Confusion and calibration are those of hand-worked cases and of scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from mnist_ray.errors import CorruptFileError
from mnist_ray.report.analysis.predictions import Predictions, images_of_test, predictions
from tests.report.made_up import NUM_TEST, made_up_spec, make_up


def some(labels: list[int], said: list[int], confidence: list[float]) -> Predictions:
    return Predictions(np.array(labels, dtype=np.uint8), np.array(said), np.array(confidence))


def test_the_calibration_error_of_a_hand_worked_case() -> None:
    """Two of four right at 0.95: gap 0.45; one of one right at 0.55: gap 0.45; weights 4/5 and 1/5."""
    found = some([1, 2, 3, 4, 5], [1, 2, 0, 0, 5], [0.95, 0.95, 0.95, 0.95, 0.55])
    assert found.calibration_error() == pytest.approx(0.45)
    assert [each.num_examples for each in found.reliability()] == [1, 4]


def test_gaps_of_both_signs_do_not_cancel_and_full_confidence_has_a_bin() -> None:
    found = some([1, 1, 2, 2], [1, 0, 2, 2], [1.0, 1.0, 0.5, 0.5])
    assert found.calibration_error() == pytest.approx(0.5)


def test_confusion_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, said = random.integers(0, 10, 500), random.integers(0, 10, 500)
    found = some(labels.tolist(), said.tolist(), [1.0] * 500).confusion()
    assert (found == confusion_matrix(labels, said, labels=range(10))).all()


def test_what_is_on_record_is_read_back_and_damage_is_named(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path))
    scores = (run.stage("tested") or {})["scores"]
    for training_id, score in scores.items():
        found = predictions(run, training_id)
        assert found is not None
        assert len(found.labels) == NUM_TEST
        assert int(found.is_right.sum()) == score["test_correct"]
        images = images_of_test(run)
        assert images is not None
        assert set(np.flatnonzero(~found.is_right)) <= set(images.missed)
    blob = next(iter(scores.values()))["test_logits"]
    (run.record / "blobs" / blob).write_bytes(b"no logits")
    with pytest.raises(CorruptFileError, match=blob):
        predictions(run, next(iter(scores)))


def test_an_untested_run_has_none(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path), until="retrained")
    assert images_of_test(run) is None
    assert predictions(run, "retrain-recipe-seed-0") is None
