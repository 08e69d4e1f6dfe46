"""A split is a stratified partition that follows from its seed."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from mnist_ray import data
from mnist_ray.errors import DataError
from tests.data.made_files import Array


@st.composite
def splittable(draw: st.DrawFn) -> tuple[Array, int, int]:
    """Draw (labels, num_validation, seed) for which a split exists."""
    class_counts = draw(st.lists(st.integers(2, 40), min_size=1, max_size=10))
    labels = np.repeat(np.arange(len(class_counts), dtype=np.int64), class_counts)
    num_validation = draw(st.integers(len(class_counts), len(labels) - len(class_counts)))
    seed = draw(st.integers(0, 2**31 - 1))
    return np.random.default_rng(seed).permutation(labels), num_validation, seed


@settings(max_examples=60, deadline=None)
@given(splittable())
def test_split_is_a_stratified_partition(case: tuple[Array, int, int]) -> None:
    labels, num_validation, seed = case
    split = data.stratified_split(labels, num_validation, seed)
    assert len(split.validation) == num_validation
    assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(len(labels)))
    for side in (split.train, split.validation):
        assert side.dtype == np.int64
        assert (np.diff(side) > 0).all()
        proportional = np.bincount(labels) * len(side) / len(labels)
        held = np.bincount(labels[side], minlength=len(proportional))
        assert (np.abs(held - proportional) < 1 + 1e-9).all()
    again = data.stratified_split(labels, num_validation, seed)
    assert again.sha256 == split.sha256
    assert again.sha256 == hashlib.sha256(split.train.tobytes() + split.validation.tobytes()).hexdigest()


@settings(max_examples=100, deadline=None)
@given(splittable())
def test_split_is_scikit_learns(case: tuple[Array, int, int]) -> None:
    labels, num_validation, seed = case
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=num_validation, random_state=seed, stratify=labels
    )
    split = data.stratified_split(labels, num_validation, seed)
    assert np.array_equal(split.train, np.sort(train))
    assert np.array_equal(split.validation, np.sort(validation))


def test_seeds_give_different_splits() -> None:
    labels = np.repeat(np.arange(10), 20)
    assert len({data.stratified_split(labels, 50, seed).sha256 for seed in range(5)}) == 5


@pytest.mark.parametrize("num_validation", [-1, 0, 9, 191, 200, 201])
def test_impossible_split_is_refused(num_validation: int) -> None:
    with pytest.raises(DataError, match=rf"num_validation is {num_validation}:.*10 to 190"):
        data.stratified_split(np.repeat(np.arange(10), 20), num_validation, seed=0)


@pytest.mark.parametrize(("labels", "message"), [([], "num_validation is 2"), ([0, 0, 0, 1], "one example")])
def test_rare_classes_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.stratified_split(np.array(labels, dtype=np.int64), 2, seed=0)
