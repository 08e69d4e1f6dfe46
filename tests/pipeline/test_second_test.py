"""A second test is read once, after the choice, with the first, and nowhere before."""

import json
from pathlib import Path

import pytest

from mnist_ray import RunDir, SpecError, data, parse_spec, run_job
from mnist_ray.record.tables import results_table
from mnist_ray.report.analysis.predictions import images_of_test, predictions
from mnist_ray.report.write import write_report
from tests.faults.small_job import in_a_fork, small_spec, stand_in, warm_up


def test_it_is_scored_recorded_and_reported_beside_the_first(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, data={"name": "mnist", "num_validation": 30}, test={"also": ["qmnist50k"]})
    log = tmp_path / "read.json"

    def call() -> None:
        with pytest.MonkeyPatch.context() as patch:
            stand_in(patch)
            fetched: list[str] = []
            patch.setattr(data, "fetch", lambda name, folder, also=(): fetched.extend([name, *also]))
            second = data.load_test("digits", Path())
            stages: list[str] = []

            def load_second(name: str, folder: Path) -> data.LabelledImages:
                stages.extend(entry["stage"] for entry in RunDir(tmp_path / "small").all_stages())
                return second

            patch.setattr(data, "load_second_test", load_second)
            run_job(spec)
            log.write_text(json.dumps({"fetched": fetched, "stages": stages}))

    warm_up(tmp_path / "warm")
    assert in_a_fork(call) == 0
    seen = json.loads(log.read_text())
    assert seen["fetched"] == ["mnist", "qmnist50k"]
    assert seen["stages"][-1] == "unsealed" and seen["stages"].count("unsealed") == 1
    run = RunDir(tmp_path / "small")
    table = results_table(run)
    tested = table[table["test_accuracy"].notna()]
    assert len(tested) >= 1
    assert tested["qmnist50k_correct"].equals(tested["test_correct"])  # the same images stood for both
    assert table[table["stage"] != "retrain"]["qmnist50k_accuracy"].isna().all()
    said = predictions(run, tested["id"].iloc[0], "qmnist50k")
    assert said is not None and images_of_test(run, "qmnist50k") is not None
    write_report(run)
    assert "Second test: qmnist50k" in run.report.read_text()


def test_it_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(SpecError, match=r"test\.also .*data\.name is digits: use data\.name mnist or qmnist"):
        parse_spec({"data": {"name": "digits"}, "test": {"also": ["qmnist50k"]}})
    with pytest.raises(SpecError, match=r"test\.also"):
        parse_spec({"data": {"name": "mnist"}, "test": {"also": ["emnist"]}})
