"""The verdict says what its evidence supports, and no more."""

from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config import TrainingConfig
from mnist_ray.report.analysis.verdict import Verdict, verdict
from tests.report.made_up import Noise, made_up_spec, make_up

QUIET = Noise(accuracy=0.0002)


def judge(tmp_path: Path, seeds: list[int], selected: float, baseline: float, **changes: Any) -> Verdict:
    spec = made_up_spec(tmp_path, retrain={"seeds": seeds}, **changes)
    return verdict(make_up(spec, selected_accuracy=selected, baseline_accuracy=baseline, noise=QUIET))


@pytest.mark.parametrize(
    ("selected", "baseline", "kind"),
    [(0.99, 0.98, "better"), (0.97, 0.98, "worse"), (0.98, 0.98, "no real difference")],
)
def test_three_seeds_judge_configurations(tmp_path: Path, selected: float, baseline: float, kind: str) -> None:
    found = judge(tmp_path, [0, 1, 2], selected, baseline)
    assert found.kind == kind
    assert "paired t over seeds, 3 seeds" in found.sentence
    assert "95 % interval" in found.sentence


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_fewer_seeds_judge_networks(tmp_path: Path, seeds: list[int]) -> None:
    found = judge(tmp_path / "real", seeds, 0.99, 0.96)
    assert found.kind == "better"
    assert "exact McNemar" in found.sentence
    assert "Fewer than 3 seeds say nothing certain" in found.sentence
    found = judge(tmp_path / "none", seeds, 0.981, 0.98)
    assert found.kind == "no real difference"
    assert "seeds" in found.sentence


def test_networks_that_disagree_are_no_evidence(tmp_path: Path) -> None:
    """Each of two pairs has half the error."""
    assert judge(tmp_path, [0, 1], 0.984, 0.98).kind == "no real difference"


def test_seeds_that_would_show_it(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, retrain={"seeds": [0, 1, 2]})
    found = verdict(make_up(spec, selected_accuracy=0.982, baseline_accuracy=0.98, noise=Noise(accuracy=0.002)))
    assert found.kind == "no real difference"
    assert "seeds to see it four times out of five" in found.sentence


def test_baseline_may_be_selected(tmp_path: Path) -> None:
    def baseline_is_best(config: TrainingConfig) -> float:
        return 0.05 + float(config.learning_rate != 0.001)

    assert verdict(make_up(made_up_spec(tmp_path), loss=baseline_is_best)).kind == "same configuration"


def test_missing_baseline_is_not_compared(tmp_path: Path) -> None:
    assert verdict(make_up(made_up_spec(tmp_path, retrain={"baseline": False}))).kind == "not compared"


def test_untested_run_has_no_verdict(tmp_path: Path) -> None:
    assert verdict(make_up(made_up_spec(tmp_path), until="retrained")).kind == "not tested yet"
