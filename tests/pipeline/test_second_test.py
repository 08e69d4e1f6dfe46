"""A second test is read once, after the selection, with the first, and nowhere before."""

from pathlib import Path

import pytest

from mnist_ray import LocalBackend, RunDir, SpecError, data, parse_spec, run_job
from mnist_ray.record.events import kind_of
from mnist_ray.record.predictions import images_of_test, predictions
from mnist_ray.record.tables import results_table
from mnist_ray.report.write import write_report
from tests.small_job import small_spec, use_few_images


def test_second_test_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_spec(tmp_path, data={"name": "mnist", "num_validation": 30}, test={"also": ["qmnist50k"]})
    use_few_images(monkeypatch)
    second = data.open_data("digits", Path()).load_test()
    fetched: list[str] = []
    monkeypatch.setattr(data.opened, "fetch", lambda name, folder, also=(): fetched.extend([name, *also]))
    kinds: list[str] = []

    def load_second(name: str, folder: Path) -> data.LabelledImages:
        kinds.extend(kind_of(type(event)) for event in RunDir(tmp_path / "small").state.stage_events)
        return second

    monkeypatch.setattr(data, "load_second_test", load_second)
    run = run_job(spec, LocalBackend())
    assert fetched == ["mnist", "qmnist50k"]
    assert kinds[-1] == "test_opened" and kinds.count("test_opened") == 1
    table = results_table(run.state)
    tested = table[table["test_accuracy"].notna()]
    assert len(tested) >= 1
    assert tested["qmnist50k_correct"].equals(tested["test_correct"])  # the same images stood for both
    assert table[table["stage"] != "retrain"]["qmnist50k_accuracy"].isna().all()
    assert predictions(run, tested["id"].iloc[0], "qmnist50k") is not None
    assert images_of_test(run, "qmnist50k") is not None
    write_report(run)
    assert "Second test: qmnist50k" in run.paths.report.read_text()


def test_meaningless_second_test_is_refused() -> None:
    with pytest.raises(SpecError, match=r"test\.also .*data\.name is digits: use data\.name mnist or qmnist"):
        parse_spec({"data": {"name": "digits"}, "test": {"also": ["qmnist50k"]}})
    with pytest.raises(SpecError, match=r"test\.also"):
        parse_spec({"data": {"name": "mnist"}, "test": {"also": ["emnist"]}})
