"""The verdict says what its evidence supports, and no more."""

from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config import TrainingConfig
from mnist_ray.report.analysis.verdict import Verdict, verdict
from tests.report.made_up import Noise, made_up_spec, make_up

QUIET = Noise(accuracy=0.0002)
WIDE = {"equivalence_points": 5.0, "equivalence_loss": 0.5}


def judge(tmp_path: Path, seeds: list[int], selected: float, baseline: float, **changes: Any) -> Verdict:
    spec = made_up_spec(tmp_path, retrain={"seeds": seeds}, **changes)
    return verdict(make_up(spec, selected_accuracy=selected, baseline_accuracy=baseline, noise=QUIET))


@pytest.mark.parametrize(
    ("selected", "baseline", "kind"),
    [(0.99, 0.98, "better"), (0.97, 0.98, "worse"), (0.98, 0.98, "undecided")],
)
@pytest.mark.parametrize("decided_by", ["test_loss", "test_accuracy"])
def test_three_seeds_judge_configurations(
    tmp_path: Path, selected: float, baseline: float, kind: str, decided_by: str
) -> None:
    found = judge(tmp_path, [0, 1, 2], selected, baseline, report={"decided_by": decided_by})
    assert (found.kind, found.judgement.decided_by) == (kind, decided_by)
    assert "3 seeds each, 2,000 test images" in found.sentence
    assert found.sentence.count("95 % interval") == 2, "both quantities are shown"
    assert "four times out of five" in found.sentence
    assert "no real difference" not in found.sentence.lower()


def test_equal_within_the_bounds_is_equivalent(tmp_path: Path) -> None:
    found = judge(tmp_path, [0, 1, 2], 0.98, 0.98, report=WIDE)
    assert found.kind == "equivalent"
    assert "within ±0.5000 (report.equivalence_loss)" in found.sentence


def test_direction_comes_before_equivalence(tmp_path: Path) -> None:
    """A certain gain is better however small, and the sentence says that it is small."""
    found = judge(tmp_path, [0, 1, 2], 0.99, 0.98, report=WIDE)
    assert found.kind == "better"
    assert "certain but small: within ±0.5000 (report.equivalence_loss)" in found.sentence


@pytest.mark.parametrize(("objective", "quantity"), [("val_loss", "test_loss"), ("val_accuracy", "test_accuracy")])
def test_deciding_quantity_follows_the_objective(tmp_path: Path, objective: str, quantity: str) -> None:
    found = judge(tmp_path, [0, 1, 2], 0.99, 0.98, search={"objective": objective})
    assert found.judgement.decided_by == quantity


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_fewer_seeds_judge_networks(tmp_path: Path, seeds: list[int]) -> None:
    found = judge(tmp_path / "real", seeds, 0.99, 0.96)
    assert found.kind == "better"
    assert "sign flips over images" in found.sentence
    assert "This speaks of these networks" in found.sentence
    found = judge(tmp_path / "none", seeds, 0.981, 0.98, report=WIDE)
    assert found.kind == "undecided", "two networks are never equivalent"


def test_sides_may_differ_in_seeds(tmp_path: Path) -> None:
    """The comparison is not paired: a seed that failed on one side costs nothing on the other."""
    run = make_up(made_up_spec(tmp_path, retrain={"seeds": [0, 1, 2, 3]}), selected_accuracy=0.99, noise=QUIET)
    assert run.state.tested is not None
    run.state.tested.scores.pop("retrain-baseline-seed-3")
    found = verdict(run)
    assert found.judgement.quantities["test_loss"].difference.num_seeds == (4, 3)
    assert "4 and 3 seeds" in found.sentence


def test_baseline_may_be_selected(tmp_path: Path) -> None:
    def baseline_is_best(config: TrainingConfig) -> float:
        return 0.05 + float(config.learning_rate != 0.001)

    found = verdict(make_up(made_up_spec(tmp_path), loss=baseline_is_best))
    assert found.kind == "same recipe"
    assert "validation found nothing better" in found.sentence


def test_missing_baseline_is_not_compared(tmp_path: Path) -> None:
    assert verdict(make_up(made_up_spec(tmp_path, retrain={"baseline": False}))).kind == "not compared"


def test_untested_run_has_no_verdict(tmp_path: Path) -> None:
    assert verdict(make_up(made_up_spec(tmp_path), until="retrained")).kind == "not tested yet"
