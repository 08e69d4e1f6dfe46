"""A run takes its baseline from another one that retrained the same, and says what is not the same."""

from collections.abc import Iterator
from typing import Any

import pytest

from mnist_ray import JobSpec, LocalBackend, RunDir, SpecError, run_job
from tests.small_job import Remembering, small_spec, use_few_images


@pytest.fixture(scope="module", autouse=True)
def _small_jobs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run_job(small_spec(tmp_path_factory.mktemp("runs"), retrain__seeds=[0, 1]), LocalBackend())


def taking_spec(source: RunDir, **changes: Any) -> JobSpec:
    """Return the spec of another search beside `source`, which takes its baseline."""
    given = {
        "name": "taking",
        "search__space": {"learning_rate": {"choices": [0.002, 0.003]}},
        "retrain__seeds": [0, 1],
        "retrain__baseline_from": "small",
    }
    return small_spec(source.path.parent, **(given | changes))


def test_baseline_is_taken_over(source: RunDir) -> None:
    """With every epoch, its weights and where they come from; only the selected configuration is trained."""
    before = sorted((path, path.stat().st_mtime_ns) for path in source.path.rglob("*"))
    remembering = Remembering()
    run = run_job(taking_spec(source), LocalBackend(), [remembering])
    state = run.state
    assert state.selected is not None and state.tested is not None and source.state.tested is not None
    assert [plan.role for plan in state.selected.retrainings] == ["selected", "selected", "baseline", "baseline"]
    for seed in (0, 1):
        name = f"retrain-recipe-seed-{seed}"
        there, here = source.state.training(name), state.training(name)
        assert there is not None and here is not None and there.ended is not None and here.ended is not None
        assert (here.config, here.history, here.ended.model) == (there.config, there.history, there.ended.model)
        assert here.ended.taken_from == f"small/{name}" and there.ended.taken_from is None
        assert run.weights(name) == source.weights(name)
        assert state.tested.scores[name] == source.state.tested.scores[name]
    assert sorted((path, path.stat().st_mtime_ns) for path in source.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe__dropout": 0.3}, "dropout 0.25 there, 0.3 here"),
        ({"retrain__num_epochs": 3}, "num_epochs 2 there, 3 here"),
        ({"retrain__seeds": [0, 7]}, "no baseline with seed 7"),
        ({"kernels": "plain"}, "kernels auto there, plain here"),
        ({"seed": 5}, "its data or split differ"),
    ],
)
def test_differences_are_refused_first(source: RunDir, change: dict[str, Any], named: str) -> None:
    """Before anything is trained."""
    spec = taking_spec(source, name="refused", **change)
    with pytest.raises(SpecError, match=rf"retrain\.baseline_from small: .*{named}.*leave out retrain\.baseline_from"):
        run_job(spec, LocalBackend())
    assert RunDir(source.path.parent / "refused").state.trainings("search") == []


def test_missing_run_is_named(source: RunDir) -> None:
    with pytest.raises(SpecError, match=r"no run 'nowhere'.*small"):
        run_job(taking_spec(source, name="lost", retrain__baseline_from="nowhere"), LocalBackend())
