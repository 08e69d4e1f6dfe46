"""Runs are compared with the first by its rule and the method that fits their seeds."""

from pathlib import Path

import pytest

from mnist_ray.report.analysis.comparison import compare, comparison_text
from tests.report.made_up import Noise, Until, made_up_spec, make_up

QUIET = Noise(accuracy=0.0002)


@pytest.mark.parametrize(
    ("first", "second", "result"), [(0.98, 0.95, "worse"), (0.95, 0.98, "better"), (0.98, 0.98, "undecided")]
)
def test_first_run_is_the_reference(tmp_path: Path, first: float, second: float, result: str) -> None:
    runs = [
        make_up(made_up_spec(tmp_path, name=name, seed=seed), selected_accuracy=accuracy, noise=QUIET)
        for name, seed, accuracy in (("first", 0, first), ("second", 1, second))
    ]
    (found,) = compare(runs)
    assert found.sentence.startswith(f"{result}: ")
    assert found.is_worse == (result == "worse")
    assert found.inputs == {"seed": (0, 1)}
    text = comparison_text(runs, [found])
    assert "second against first:" in text and "3 seeds each" in text


@pytest.mark.parametrize(
    ("seeds", "other_seeds", "method"),
    [
        ([0, 1, 2], [3, 4, 5, 6], "seeds and images"),
        ([0], [0], "sign flips over images"),
        ([0, 1, 2], [0], "sign flips over images"),
    ],
)
def test_method_fits_the_seeds(tmp_path: Path, seeds: list[int], other_seeds: list[int], method: str) -> None:
    runs = [
        make_up(made_up_spec(tmp_path, name=name, retrain={"seeds": its}), noise=QUIET)
        for name, its in (("first", seeds), ("second", other_seeds))
    ]
    (found,) = compare(runs)
    assert found.judgement is not None
    assert {each.difference.method for each in found.judgement.quantities.values()} == {method}
    assert {each.difference.num_seeds for each in found.judgement.quantities.values()} == {
        (len(other_seeds), len(seeds))
    }


def test_first_run_sets_the_rule(tmp_path: Path) -> None:
    rule = {"decided_by": "test_accuracy", "equivalence_points": 100.0}
    runs = [
        make_up(made_up_spec(tmp_path, name=name, **changes), noise=QUIET)
        for name, changes in (("first", {"report": rule}), ("second", {}))
    ]
    (found,) = compare(runs)
    assert found.judgement is not None
    assert (found.judgement.decided_by, found.judgement.kind) == ("test_accuracy", "equivalent")


@pytest.mark.parametrize("until", ["selected", "retrained"])
def test_unfinished_run_is_not_compared(tmp_path: Path, until: Until) -> None:
    runs = [
        make_up(made_up_spec(tmp_path, name="first")),
        make_up(made_up_spec(tmp_path, name="second"), until=until),
    ]
    (found,) = compare(runs)
    assert found.sentence == "not compared: not both are tested"
    assert not found.is_worse
    assert "second: not tested yet" in comparison_text(runs, [found])
