"""Exported files show what is published, and are made again where they are missing or old."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config import Hyperparameters, JobSpec, load_spec
from mnist_ray.record.exports import exports_are_current, selected_spec, write_exports
from mnist_ray.record.outcome import SCHEMA_VERSION, outcome_of
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.tables import read_results
from tests.record.a_whole_run import REASONS, SELECTED, write_a_whole_run
from tests.record.examples import SPEC, created, read, reported, started, write, writing


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = write_a_whole_run(tmp_path_factory.mktemp("results") / "example", num_more_trials=25)
    write_exports(run.path)
    return run


def test_outcomes_are_readable_by_programs(whole_run: RunDir) -> None:
    outcome: dict[str, Any] = json.loads(whole_run.paths.outcome.read_text())
    assert outcome == json.loads(json.dumps(asdict(outcome_of(whole_run))))
    assert outcome["schema_version"] == SCHEMA_VERSION
    assert outcome["verdict"]["kind"] == "not compared"  # its logits are no logits
    assert outcome["ensembles"] == []
    assert outcome["trials"] == {"complete": 26, "failed": 1 + len(REASONS), "pruned": 1, "running": 1, "stopped": 1}
    assert outcome["selected"]["training"] == "trial-0000"
    expected = Hyperparameters(learning_rate=0.003, dropout=0.1, batch_size=64)
    assert outcome["selected"]["hyperparameters"] == expected.model_dump()
    assert outcome["tested"][SELECTED]["test_correct"] == 357
    stages = ["session_started", "search_ended", "configuration_selected", "test_opened", "test_scored"]
    assert [entry["stage"] for entry in outcome["stages"]] == stages
    assert outcome["test_opened_at"] == outcome["stages"][3]["at"]
    assert outcome["num_events"] == whole_run.state.num_events


def test_the_selected_spec_trains_again(whole_run: RunDir) -> None:
    best = load_spec(whole_run.paths.selected_spec)
    assert best.starting_point == Hyperparameters(learning_rate=0.003, dropout=0.1, batch_size=64)
    assert SPEC.retrain is not None
    assert best.retrain == SPEC.retrain.model_copy(update={"baseline": False})
    assert (best.data, best.seed) == (SPEC.data, SPEC.seed)
    assert best.name == "example-best"
    assert load_spec(whole_run.paths.spec) == SPEC


@pytest.mark.parametrize("length", [1, 59, 60, 64])
def test_long_names_get_one_too(length: int) -> None:
    spec: JobSpec = SPEC.model_copy(update={"name": "x" * length})
    assert selected_spec(spec, spec.baseline).name.endswith("-best")


def test_models_and_logs_are_copied(whole_run: RunDir) -> None:
    paths = whole_run.paths
    assert paths.model(SELECTED).read_bytes() == whole_run.weights(SELECTED)
    assert paths.test_logits(SELECTED).read_bytes() == f"logits of {SELECTED}".encode()
    log = paths.training_log("trial-0003").read_text()
    assert "died at once" in log and "Traceback" in log
    assert not paths.training_log("trial-0000").exists()


def test_unstarted_runs_export_nothing(tmp_path: Path) -> None:
    """A process that died before it had its data leaves only the record."""
    write(tmp_path)
    write_exports(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["record"]


def test_nothing_selected_is_no_spec(tmp_path: Path) -> None:
    run = write(tmp_path, started())
    write_exports(tmp_path)
    assert json.loads(run.paths.outcome.read_text())["selected"] is None
    assert not run.paths.selected_spec.exists()


def test_only_published_events_are_exported(tmp_path: Path, unhurried: None) -> None:
    """Even by the process that has recorded more."""
    with writing(tmp_path) as writer:
        writer.record(started())
        writer.publish(created())
        writer.record(reported())
        write_exports(tmp_path)
        assert read_results(writer.run.paths.results_csv)["epochs_done"].tolist() == [0]
        writer.flush()
        write_exports(tmp_path)
        assert read_results(writer.run.paths.results_csv)["epochs_done"].tolist() == [1]


def test_old_and_missing_exports_are_noticed(tmp_path: Path) -> None:
    run = write(tmp_path, started())
    assert not exports_are_current(run)
    write_exports(tmp_path)
    assert exports_are_current(run)
    run = write(tmp_path, created())
    assert not exports_are_current(run), "they show less than the record"
    write_exports(tmp_path)
    for path in (run.paths.study, run.paths.results_csv, run.paths.outcome):
        content = path.read_bytes()
        path.unlink()
        assert not exports_are_current(read(tmp_path))
        path.write_bytes(content)
    assert exports_are_current(read(tmp_path))
