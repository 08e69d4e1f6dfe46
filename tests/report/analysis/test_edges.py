"""A best value at the edge of the space is noticed, and the wider space is one that a spec accepts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_ray.config import Choices, Range, parse_spec
from mnist_ray.report.analysis.edges import edge, space_patch, widen
from tests.report.analysis.test_search_review import review
from tests.report.made_up import made_up_spec, make_up


def test_short_range_gets_a_wider_patch(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 1e-5, "high": 3e-4, "log": True}, "dropout": {"low": 0.0, "high": 0.6}}
    found = review(make_up(made_up_spec(tmp_path, search={"space": space})))
    (warning,) = [each for each in found.warnings if each.patch]
    assert "learning_rate" in warning.text and "high end" in warning.text
    assert warning.patch is not None
    patch = yaml.safe_load(warning.patch)
    wider = parse_spec({"data": {"name": "digits"}} | patch).search.space["learning_rate"]
    assert isinstance(wider, Range)
    assert wider.low == 1e-5 and wider.high > 1e-3  # which holds the bottom of the bowl


LEARNING_RATE, DROPOUT, SIZES = (
    Range(low=1e-4, high=1e-2, log=True),
    Range(low=0.1, high=0.5),
    Choices(choices=(32, 64, 128)),
)


DECAY = Range(low=1e-5, high=0.1, log=True, off=0.0)


@pytest.mark.parametrize(
    ("dimension", "best", "good", "at"),
    [
        (LEARNING_RATE, 0.0099, [0.0099, 0.008, 0.009], "high"),
        (LEARNING_RATE, 0.0099, [0.0099, 0.001, 0.0005], None),  # the others lie elsewhere: luck
        (LEARNING_RATE, 0.001, [0.001, 0.0099, 0.0098], None),
        (DROPOUT, 0.101, [0.101, 0.12, 0.3], "low"),
        (SIZES, 128, [128, 128, 64], "high"),
        (SIZES, 64, [64, 64, 64], None),
        (Choices(choices=(64,)), 64, [64], None),
        (DECAY, 0.0, [0.0, 1e-5, 1e-5], None),  # off lies at no end
        (DECAY, 0.1, [0.1, 0.09, 0.0], "high"),
    ],
)
def test_edges_are_found(dimension: Any, best: float, good: list[float], at: str | None) -> None:
    assert edge(dimension, best, good) == at


@pytest.mark.parametrize(
    ("key", "dimension", "end", "wider"),
    [
        ("learning_rate", LEARNING_RATE, "high", Range(low=1e-4, high=0.1, log=True)),
        ("dropout", DROPOUT, "high", Range(low=0.1, high=0.7)),
        ("dropout", DROPOUT, "low", Range(low=0.0, high=0.5)),
        ("dropout", Range(low=0.0, high=0.5), "low", None),  # nothing lies beyond
        ("dropout", Range(low=0.0, high=0.9), "high", None),  # half as wide again is no dropout, nor is an eighth
        ("weight_decay", DECAY, "low", Range(low=1e-7, high=0.1, log=True, off=0.0)),
        ("batch_size", SIZES, "low", Choices(choices=(16, 32, 64, 128))),
        ("batch_size", Choices(choices=(1, 2)), "low", None),
    ],
)
def test_wider_space_is_valid(key: str, dimension: Any, end: str, wider: Any) -> None:
    found = widen(key, dimension, end)
    assert found == wider
    if found is not None:
        patch = space_patch({key: found})
        parse_spec({"data": {"name": "digits"}} | yaml.safe_load(patch))
