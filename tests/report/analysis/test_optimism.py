"""The best of many trials looks better in the search than on fresh seeds, and the review says by how much."""

from pathlib import Path

import numpy as np
import pytest

from tests.report.analysis.test_search_review import review
from tests.report.made_up import Noise, made_up_spec, make_up


def test_optimism_is_measured(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, final={"top_k": 5, "seeds": 3, "num_epochs": 6})
    found = review(make_up(spec, loss=lambda config: 0.05, noise=Noise(loss=0.004)))  # luck alone: the best is too good
    assert len(found.optimism) == 5
    assert all(len(each.fresh) == 3 for each in found.optimism)
    shifts = [each.shift for each in found.optimism if each.shift is not None]
    assert np.mean(shifts) > 0.002
    assert any("on fresh seeds" in sentence.lower() and "worse" in sentence for sentence in found.sentences)
    assert found.seed_spread is not None
    assert found.seed_spread.deviation == pytest.approx(0.004 * (1 + 1 / 6), rel=0.5)


def test_missing_final_is_named(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path, final=None))
    assert any("did not run on fresh seeds" in sentence for sentence in review(run).sentences)
