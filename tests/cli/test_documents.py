"""With --json a command prints one document and nothing else; its keys are those of the tables and the spec."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import main
from mnist_ray.config import JobSpec, dump_spec
from mnist_ray.record.exports import write_exports
from mnist_ray.record.listing import listed_run
from mnist_ray.record.rundir import RunDir
from tests.faults.made_run import make_open_run
from tests.report.made_up import made_up_spec, make_up

REPOSITORY = Path(__file__).resolve().parents[2]
LISTED = {
    "run", "began_at", "data", "status", "running_since", "progress", "elapsed_s", "test_accuracy", "test_loss",
    "baseline_test_accuracy", "baseline_test_loss", "decided_by", "difference", "difference_low", "difference_high",
    "verdict",
}  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    for name, accuracy in (("good", 0.985), ("poor", 0.95)):
        make_up(made_up_spec(storage, name=name), selected_accuracy=accuracy)
    make_open_run(storage)
    return storage


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    spec: JobSpec = made_up_spec(tmp_path)
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    return tmp_path / "spec.yaml"


def document(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    return answer


def test_results_are_a_document(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {run["run"]: run for run in document(capsys, "results", "--storage", storage)["runs"]}
    assert set(listed) == {"good", "poor", "made"}
    assert all(set(run) == LISTED for run in listed.values())
    good, half = listed["good"], listed["made"]
    assert good["status"] == "finished" and good["progress"] is None
    assert good["test_accuracy"] > listed["poor"]["test_accuracy"]
    assert good["difference_low"] <= good["difference"] <= good["difference_high"]
    assert (half["status"], half["verdict"], half["test_accuracy"]) == ("stopped", None, None)
    assert half["progress"] == {"stage": "search", "done": 1, "total": 2, "unit": "trials"}


def test_exported_verdict_is_read_while_it_is_current(tmp_path: Path) -> None:
    run = make_up(made_up_spec(tmp_path))
    computed = listed_run(run)
    write_exports(run.path)
    assert listed_run(RunDir(run.path)) == computed
    outcome = json.loads(run.paths.outcome.read_text())
    outcome["verdict"]["kind"] = "as exported"
    run.paths.outcome.write_text(json.dumps(outcome))
    assert listed_run(RunDir(run.path)).verdict == "as exported"
    run.paths.outcome.write_text(json.dumps(outcome | {"num_events": 1}))
    assert listed_run(RunDir(run.path)) == computed


def test_damage_is_a_line_beside_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_up(made_up_spec(tmp_path, name="broken"))
    next(run.paths.record.glob("*.json")).write_text("{")
    assert main(["results", "--storage", str(tmp_path), "--json"]) == 3
    shown = capsys.readouterr()
    (damage,) = json.loads(shown.out)["damaged"]
    assert "broken" in damage and damage in shown.err


def test_comparison_is_a_document(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "compare", "good", "poor", "--storage", storage)
    assert [run["run"] for run in found["runs"]] == ["good", "poor"]
    (comparison,) = found["comparisons"]
    assert comparison["run"] == "poor" and comparison["judgement"]["kind"] == "worse"
    assert comparison["judgement"]["quantities"]["test_loss"]["difference"]["value"] > 0


def test_plan_is_a_document(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "plan", spec_file, "--price-per-hour", "6")
    assert found["is_possible"] and found["obstacles"] == []
    assert found["total"]["expected_s"] == pytest.approx(sum(stage["expected_s"] for stage in found["estimates"]))
    assert found["cost"]["at_most"] == pytest.approx(6 * found["total"]["at_most_s"] / 3600)
    assert found["speed"]["is_rough"] and "trials" in found["facts"]
    impossible = document(capsys, "plan", spec_file, "--set", "retrain.cpus_per_worker=999", code=2)
    assert not impossible["is_possible"] and "retrain.cpus_per_worker" in impossible["obstacles"][0]
    assert impossible["total"] is None and impossible["cost"] is None


def test_examination_is_a_document(tmp_path: Path) -> None:
    """In a process of its own, whose libraries print what they like."""
    command = [sys.executable, "-m", "mnist_ray.cli", "doctor", "--json", "--storage", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["is_good"] == (done.returncode == 0)
    assert {"torch", "ray", "storage"} <= {finding["what"] for finding in found["findings"]}


def test_mistake_prints_no_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--json", "--storage", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "there is no run 'a'" in shown.err
