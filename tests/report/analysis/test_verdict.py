"""The verdict says what its evidence supports, and no more."""

from pathlib import Path
from typing import Any

import pytest

from mnist_ray.report.analysis.comparison import compare, comparison_text
from mnist_ray.report.analysis.verdict import Verdict, verdict
from tests.report.made_up import Noise, made_up_spec, make_up

QUIET = Noise(accuracy=0.0002)


def of(tmp_path: Path, seeds: list[int], tuned: float, recipe: float, **changes: Any) -> Verdict:
    spec = made_up_spec(tmp_path, retrain={"seeds": seeds}, **changes)
    return verdict(make_up(spec, tuned_accuracy=tuned, recipe_accuracy=recipe, noise=QUIET))


@pytest.mark.parametrize(
    ("tuned", "recipe", "kind"),
    [(0.99, 0.98, "better"), (0.97, 0.98, "worse"), (0.98, 0.98, "no real difference")],
)
def test_three_seeds_decide_by_the_paired_t_interval(tmp_path: Path, tuned: float, recipe: float, kind: str) -> None:
    found = of(tmp_path, [0, 1, 2], tuned, recipe)
    assert found.kind == kind
    assert "paired t over seeds, 3 seeds" in found.sentence
    assert "95 % interval" in found.sentence


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_fewer_seeds_speak_of_these_networks_only(tmp_path: Path, seeds: list[int]) -> None:
    found = of(tmp_path / "real", seeds, 0.99, 0.96)
    assert found.kind == "better"
    assert "exact McNemar" in found.sentence
    assert "Fewer than 3 seeds say nothing certain" in found.sentence
    found = of(tmp_path / "none", seeds, 0.981, 0.98)
    assert found.kind == "no real difference"
    assert "seeds" in found.sentence


def test_two_networks_that_disagree_are_no_evidence(tmp_path: Path) -> None:
    """Half the error for each of two pairs."""
    found = of(tmp_path, [0, 1], 0.984, 0.98)
    assert found.kind == "no real difference"


def test_a_difference_that_is_not_seen_says_how_many_seeds_would_show_it(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, retrain={"seeds": [0, 1, 2]})
    found = verdict(make_up(spec, tuned_accuracy=0.982, recipe_accuracy=0.98, noise=Noise(accuracy=0.002)))
    assert found.kind == "no real difference"
    assert "seeds to see it four times out of five" in found.sentence


def test_the_recipe_as_the_choice_a_missing_baseline_and_a_sealed_test(tmp_path: Path) -> None:
    def best_is_recipe(config: dict[str, Any]) -> float:
        return 0.05 + float(config["learning_rate"] != 0.001)

    spec = made_up_spec(tmp_path / "same")
    assert verdict(make_up(spec, loss=best_is_recipe)).kind == "same recipe"
    spec = made_up_spec(tmp_path / "alone", retrain={"baseline": False})
    assert verdict(make_up(spec)).kind == "not compared"
    spec = made_up_spec(tmp_path / "sealed")
    assert verdict(make_up(spec, until="retrained")).kind == "not tested yet"


@pytest.mark.parametrize(
    ("first", "second", "said"), [(0.98, 0.95, "worse"), (0.95, 0.98, "better"), (0.98, 0.98, "no more than noise")]
)
def test_runs_are_compared_with_the_first(tmp_path: Path, first: float, second: float, said: str) -> None:
    runs = [
        make_up(made_up_spec(tmp_path, name=name, seed=seed), tuned_accuracy=accuracy, noise=QUIET)
        for name, seed, accuracy in (("first", 0, first), ("second", 1, second))
    ]
    (found,) = compare(runs)
    assert found.sentence.startswith(said)
    assert found.is_worse == (said == "worse")
    assert found.inputs == ["seed: 0 -> 1"]
    text = comparison_text(runs, [found])
    assert "second against first:" in text and "paired t over seeds" in text


@pytest.mark.parametrize(
    ("seeds", "other_seeds", "method"),
    [([0, 1, 2], [3, 4, 5], "Welch's t over seeds"), ([0], [0], "exact McNemar"), ([0, 1, 2], [0], "exact McNemar")],
)
def test_the_test_fits_the_seeds_that_there_are(
    tmp_path: Path, seeds: list[int], other_seeds: list[int], method: str
) -> None:
    runs = [
        make_up(made_up_spec(tmp_path, name=name, retrain={"seeds": its}), noise=QUIET)
        for name, its in (("first", seeds), ("second", other_seeds))
    ]
    (found,) = compare(runs)
    assert found.difference is not None
    assert found.difference.method == method


@pytest.mark.parametrize("until", ["chosen", "retrained"])
def test_unfinished_runs_are_not_compared(tmp_path: Path, until: str) -> None:
    runs = [
        make_up(made_up_spec(tmp_path, name="first")),
        make_up(made_up_spec(tmp_path, name="second"), until=until),
    ]
    (found,) = compare(runs)
    assert found.sentence == "not compared: not both are tested"
    assert not found.is_worse
    assert "second: not tested yet" in comparison_text(runs, [found])
