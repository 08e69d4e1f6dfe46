"""A poor search is called one in words; a good one raises no warning."""

from pathlib import Path

import pytest

from mnist_ray.record.rundir import RunDir
from mnist_ray.report.analysis.search_review import SearchReview, review_search
from tests.report.made_up import made_up_spec, make_up


def review(run: RunDir) -> SearchReview:
    found = review_search(run.state)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(5))
def test_good_search_raises_no_warning(tmp_path: Path, seed: int) -> None:
    assert review(make_up(made_up_spec(tmp_path, seed=seed))).warnings == []


def test_many_failures_are_noticed(tmp_path: Path) -> None:
    found = review(make_up(made_up_spec(tmp_path), failures=(3, 7, 9, 11, 12, 20)))
    assert found.spending.counts["failed"] == 6
    assert "6 of 30 trials failed" in found.warnings[0].text


def test_budgets_that_differ_are_named(tmp_path: Path) -> None:
    sentences = review(make_up(made_up_spec(tmp_path))).sentences
    assert any("need not be best" in sentence and "test accuracies differ by" in sentence for sentence in sentences)


def test_no_trials_no_review(tmp_path: Path) -> None:
    assert review_search(make_up(made_up_spec(tmp_path), until="started").state) is None


def test_batch_sizes_are_compared(tmp_path: Path) -> None:
    found = review(make_up(made_up_spec(tmp_path)))
    sizes = [each.batch_size for each in found.batch_sizes]
    assert sizes == sorted(set(sizes)) and len(sizes) > 1
    assert all(each.images_per_s == pytest.approx(180 / 0.01) for each in found.batch_sizes)
    best = min(each.best for each in found.batch_sizes if each.best is not None)
    assert best == min(each.search_score for each in found.optimism)
