"""The report follows from the record alone, is the same bytes everywhere, and runs nothing that a person typed."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from plotly.offline import get_plotlyjs

from mnist_ray.config import Hyperparameters, Recipe, TrainingParts
from mnist_ray.errors import SpecError
from mnist_ray.record.exports import write_exports
from mnist_ray.record.lease import owned
from mnist_ray.record.models import scored_models
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.tables import COLUMNS, read_results, results_table
from mnist_ray.report import tables
from mnist_ray.report.figures import MOST_CURVES
from mnist_ray.report.formatting import number
from mnist_ray.report.review import Review
from mnist_ray.report.write import write_report
from mnist_ray.statistics import Outcome
from mnist_ray.training.checkpoint import model_from_bytes
from tests.report.made_up import Until, made_up_spec, make_up

HOSTILE = "=cmd|' /C calc'!A0 <script>alert(1)</script><img src=x onerror=alert(2)> \"quoted\" | pipe"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    made = make_up(made_up_spec(tmp_path_factory.mktemp("runs")), failures=(4,), reason=HOSTILE)
    write_report(made)
    return made


class Scripts(HTMLParser):
    """The executable inline scripts of a page, and every address in its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self._runs = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._runs = tag == "script" and values.get("type") != "application/json"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.ids += [value for name, value in attrs if name == "id" and value]
        assert not [name for name, _ in attrs if name.startswith("on")], attrs

    def handle_data(self, data: str) -> None:
        if self._runs:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._runs = False


def test_page_allows_its_own_scripts_alone(run: RunDir) -> None:
    page = run.paths.report.read_text()
    found = Scripts(page)
    assert all(address.startswith(("#", "data:image/png;base64,", "data:,")) for address in found.addresses)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "unsafe-eval" not in policy[1] and "http" not in policy[1] and "default-src 'none'" in policy[1]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy[1]))
    assert {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found.scripts} == allowed
    assert len(found.ids) == len(set(found.ids))


def test_page_is_small_enough_to_send(run: RunDir) -> None:
    assert run.paths.report.stat().st_size < 8_000_000


def test_typed_text_stays_text(run: RunDir) -> None:
    page = run.paths.report.read_text().replace(get_plotlyjs(), "")
    assert "<script>alert(1)" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in run.paths.results_markdown.read_text().replace("\\<", "")


def test_csv_holds_no_formula(run: RunDir) -> None:
    write_exports(run.path)
    assert f"'{HOSTILE[:8]}" in run.paths.results_csv.read_text()
    assert not re.search(r"(^|,)\"?[=+@]", run.paths.results_csv.read_text(), re.MULTILINE)
    assert read_results(run.paths.results_csv).equals(results_table(run.state))
    assert list(read_results(run.paths.results_csv).columns) == list(COLUMNS)


def test_report_is_reproducible(run: RunDir, tmp_path: Path) -> None:
    """From the record alone, in another folder and time zone."""
    copy = tmp_path / run.path.name
    shutil.copytree(run.path, copy)
    for export in copy.iterdir():
        if export.is_file():
            export.unlink()
    command = [sys.executable, "-m", "mnist_ray.cli", "report", str(copy)]
    environment = os.environ | {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for name in ("report.html", "results.md", "model/README.md", "model/model.safetensors"):
        assert (copy / name).read_bytes() == (run.path / name).read_bytes(), name
    assert (copy / "results.csv").is_file()


def test_verdict_stands_everywhere(run: RunDir) -> None:
    review = write_report(run)
    sentence = review.verdict.sentence
    assert sentence in run.paths.report.read_text()
    assert sentence in run.paths.results_markdown.read_text()
    assert sentence in (run.paths.model_folder / "README.md").read_text()
    assert f"verdict: {sentence}" in review.summary()


def test_ensemble_has_a_row_of_its_own(run: RunDir) -> None:
    """Three networks that err on different images are right together."""
    review = write_report(run)
    ensemble = next(each for each in review.ensembles if each.side == "selected configuration")
    score = ensemble.predictions.score
    assert score.num_correct > max(each.score.num_correct for each in scored_models(run.state, "selected"))
    right = f"{score.num_correct:,} of {score.num_examples:,}"
    assert any(row[:2] == [ensemble.label, "0, 1, 2"] and right in row for row in tables.models(review).rows)
    assert re.search(rf"\| {ensemble.label} .*\| {score.num_correct} ", run.paths.results_markdown.read_text())
    assert any(line.startswith(f"{ensemble.label} of seeds 0, 1, 2: test ") for line in review.summary())


def test_verdict_is_readable_by_programs(run: RunDir) -> None:
    write_exports(run.path)
    outcome = json.loads(run.paths.outcome.read_text())
    verdict = outcome["verdict"]
    assert (verdict["decided_by"], verdict["reason"]) == ("test_loss", None)
    assert verdict["kind"] == verdict["quantities"]["test_loss"]["outcome"]
    for name, judged in verdict["quantities"].items():
        found = judged["difference"]
        assert found["interval"]["low"] < found["value"] < found["interval"]["high"], name
        assert (found["method"], found["num_seeds"], found["num_images"]) == ("seeds and images", [3, 3], 2000)
        assert found["smallest_detectable"] > 0 and judged["outcome"] in get_args(Outcome)
    assert [each["side"] for each in outcome["ensembles"]] == ["selected configuration", "baseline"]
    assert outcome["ensembles"][0]["seeds"] == [0, 1, 2]
    assert outcome["ensembles"][0]["scores"]["test_accuracy"] > 0.98


@pytest.mark.parametrize("until", ["searched", "finished", "selected", "retrained"])
def test_missing_stages_are_named(tmp_path: Path, until: Until) -> None:
    made = make_up(made_up_spec(tmp_path), until=until)
    review = write_report(made)
    page = made.paths.report.read_text()
    assert "This run is not finished" in page
    assert review.verdict.kind == "not tested yet"
    stages = ["final round", "the selection", "the retraining", "the test"]
    done = ["searched", "finished", "selected", "retrained"].index(until)
    missing = page[page.index("This run is not finished") : page.index("</ul></div>")]
    assert [stage in missing for stage in stages] == [number >= done for number in range(4)]
    assert not made.paths.model_folder.exists()


def test_failed_search_is_reported(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path)
    made = make_up(spec, until="searched", failures=range(spec.search.num_trials))
    review = write_report(made)
    assert "30 failed" in review.summary()[0]
    assert "No trial got through an epoch" in made.paths.report.read_text()


def test_report_without_a_search(tmp_path: Path) -> None:
    made = make_up(made_up_spec(tmp_path), with_search=False)
    review = write_report(made)
    assert review.verdict.sentence.startswith("No verdict: nothing was searched")
    assert "Was the search any good?" not in made.paths.report.read_text()
    assert (made.paths.model_folder / "README.md").is_file()


def test_run_without_a_start_is_refused(tmp_path: Path) -> None:
    made = RunDir(tmp_path / "begun")
    with owned(made, when_lost=lambda: None):
        pass
    with pytest.raises(SpecError, match="has not begun"):
        write_report(made)


def test_exported_model_has_the_first_seed(run: RunDir) -> None:
    weights = (run.paths.model_folder / "model.safetensors").read_bytes()
    first = scored_models(run.state, "selected")[0]
    assert first.seed == 0
    assert weights == run.weights(first.id)
    model_from_bytes(weights)
    card = (run.paths.model_folder / "README.md").read_text()
    assert f"{100 * first.score.accuracy:.2f} %" in card and f"{first.score.num_correct:,} of" in card


@pytest.mark.parametrize("training", [{}, {"schedule": "cosine", "ema": 0.1, "weight_decay": 0.01, "augment": 1.0}])
def test_hyperparameters_in_use_are_shown(tmp_path: Path, training: dict[str, Any]) -> None:
    """Those of the recipe, and those that some training uses."""
    run = make_up(made_up_spec(tmp_path, training=training))
    write_report(run)
    shown = [*Recipe.model_fields, *(TrainingParts.model_fields if training else [])]
    page, markdown = run.paths.report.read_text(), run.paths.results_markdown.read_text()
    card = (run.paths.model_folder / "README.md").read_text()
    first = next(each.config for each in run.state.trainings("retrain") if "trial" in each.id)
    for name in Hyperparameters.model_fields:
        # The models' table and that of all trainings, or neither.
        assert page.count(f">{name.replace('_', ' ')}<") == (2 if name in shown else 0), name
        assert (markdown.count(f" {name} ") >= 3) == (name in shown), name
        assert (f"{name} {number(getattr(first, name))}" in card) == (name in shown), name
    selected = [line for line in Review.of(run).summary() if line.startswith("selected configuration (seed ")]
    assert all(name in line for name in shown for line in selected)


def test_unused_parts_are_dashes(tmp_path: Path) -> None:
    """The baseline has a constant rate, so no warm-up either."""
    run = make_up(made_up_spec(tmp_path, training={"schedule": "cosine"}))
    table = tables.models(Review.of(run))
    shown = {
        role: {(row[table.headings.index("schedule")], row[table.headings.index("warmup")]) for row in rows}
        for role in ("baseline", "selected configuration")
        if (rows := [row for row in table.rows if row[0] == role])
    }
    assert shown == {"baseline": {("–", "–")}, "selected configuration": {("cosine", "0.05")}}


def test_parts_of_training_are_reported(tmp_path: Path) -> None:
    """Words, values beside a range, and a recipe that is no point of the space."""
    space = {
        "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
        "schedule": {"choices": ["cosine", "one_cycle"]},
        "weight_decay": {"low": 1e-5, "high": 0.1, "log": True, "off": 0.0},
    }
    search = {"space": space, "num_trials": 60, "early_stopping": None}
    run = make_up(made_up_spec(tmp_path, search=search, training={"schedule": "cosine"}))
    review = write_report(run)
    page = run.paths.report.read_text()
    assert "one_cycle" in page and "the recipe" in page
    assert review.importances is not None and {each.name for each in review.importances.shares} == {
        *("learning_rate", "schedule", "weight_decay_off")
    }


def test_long_table_keeps_complete_trials(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    table = results_table(run.state)
    kept = table[(table["stage"] != "search") | (table["status"] == "complete")]
    monkeypatch.setattr(tables, "MOST_ROWS", len(kept) + 2)
    found = tables.trainings(Review.of(run))
    shown = [row[0].text for row in found.rows]
    assert set(kept["id"]) < set(shown) and len(shown) == len(kept) + 2
    assert shown == [training_id for training_id in table["id"] if training_id in shown]
    assert found.note == f"{len(table) - len(shown)} trials more are in results.csv."


def test_long_search_is_sampled(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, search={"num_trials": MOST_CURVES + 30, "num_epochs": 2, "early_stopping": None})
    made = make_up(spec, until="searched")
    write_report(made)
    assert made.paths.report.stat().st_size < 8_000_000
    assert f"The best and an even sample of {MOST_CURVES} of {MOST_CURVES + 30}." in made.paths.report.read_text()
