"""Means and spreads are those of a role's seeds, and an image that divides the roles belongs to one of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.record.models import scored_models
from mnist_ray.report.analysis.roles import DividedImages, divided_images, role_scores
from tests.report.made_up import made_up_spec, make_up


def test_spread_is_over_seeds(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path))
    for role in role_scores(run.state):
        scores = [model.score for model in scored_models(run.state, role.side)]
        assert role.seeds == (0, 1, 2)
        losses, accuracies = ([getattr(score, name) for score in scores] for name in ("loss", "accuracy"))
        assert (role.mean("test_loss"), role.mean("test_accuracy")) == (np.mean(losses), np.mean(accuracies))
        assert role.spread("test_loss") == pytest.approx(np.std(losses, ddof=1))


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path, retrain={"seeds": [7]}))
    assert [role.spread("test_loss") for role in role_scores(run.state)] == [None, None]


def test_majority_of_seeds_is_right() -> None:
    found = DividedImages((3, 2), (np.array([2, 1, 3, 0, 3]), np.array([1, 2, 0, 2, 2])))
    assert found.alone_right("selected") == [2, 0], "the one on which more seeds differ comes first"
    assert found.alone_right("baseline") == [3, 1]


@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 20))
def test_no_image_is_right_for_both(data: st.DataObject, first: int, second: int, num_images: int) -> None:
    right = [
        np.array(data.draw(st.lists(st.integers(0, seeds), min_size=num_images, max_size=num_images)), dtype=np.int64)
        for seeds in (first, second)
    ]
    found = DividedImages((first, second), (right[0], right[1]))
    exchanged = DividedImages((second, first), (right[1], right[0]))
    assert not set(found.alone_right("selected")) & set(found.alone_right("baseline"))
    assert found.alone_right("selected") == exchanged.alone_right("baseline")


def test_one_role_divides_nothing(tmp_path: Path) -> None:
    assert divided_images(make_up(made_up_spec(tmp_path, retrain={"baseline": False}))) is None
