"""The report follows from the record alone, is the same bytes everywhere, and runs nothing that a person typed."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import plotly.colors
import pytest
from plotly.offline import get_plotlyjs

from mnist_ray.config import Hyperparameters, Recipe, TrainingParts
from mnist_ray.errors import SpecError
from mnist_ray.record.exports import write_exports
from mnist_ray.record.lease import owned
from mnist_ray.record.models import scored_models
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.tables import COLUMNS, read_results, results_table
from mnist_ray.report import illustrations, tables
from mnist_ray.report.definitions import definitions
from mnist_ray.report.errors import MOST_CLASSES, MOST_LISTED, MOST_UNFOLDED, divided, errors
from mnist_ray.report.figures import MOST_CURVES
from mnist_ray.report.formatting import interval_of, loss_difference, number
from mnist_ray.report.illustrations import FEWEST_COMPLETE
from mnist_ray.report.review import Review
from mnist_ray.report.summary import results_markdown
from mnist_ray.report.write import report_html, write_report
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
    assert all(part in run.paths.report.read_text() for part in review.verdict.sentences)
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
    assert any(row[:2] == [ensemble.label, "0, 1 and 2"] and right in row for row in tables.models(review).rows)
    assert re.search(rf"\| {ensemble.label} .*\| {score.num_correct} ", run.paths.results_markdown.read_text())
    assert any(line.startswith(f"{ensemble.label} of seeds 0, 1, 2: test ") for line in review.summary())


def test_verdict_is_readable_by_programs(run: RunDir) -> None:
    write_exports(run.path)
    outcome = json.loads(run.paths.outcome.read_text())
    assert outcome["warnings"] is None and outcome["versions"]["torch"] == "2"
    review = write_report(run)
    with_warnings = json.loads(run.paths.outcome.read_text())
    assert review.search is not None
    assert with_warnings == outcome | {"warnings": [warning.text for warning in review.search.warnings]}
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
    network = model_from_bytes(weights)
    card = (run.paths.model_folder / "README.md").read_text()
    assert f"{100 * first.score.accuracy:.2f} %" in card and f"{first.score.num_correct:,} of" in card
    assert f"{sum(each.numel() for each in network.parameters()):,} parameters" in card


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
        # The tables of the models' hyperparameters, of the best trials and of all trainings, or none of them.
        assert page.count(f">{name.replace('_', ' ')}<") == (3 if name in shown else 0), name
        assert (markdown.count(f" {name} ") >= 3) == (name in shown), name
        assert (f"{name} {number(getattr(first, name))}" in card) == (name in shown), name
    selected = [line for line in Review.of(run).summary() if line.startswith("selected configuration (seed ")]
    assert all(name in line for name in shown for line in selected)


def test_unused_parts_are_dashes(tmp_path: Path) -> None:
    """The baseline has a constant rate, so no warm-up either."""
    run = make_up(made_up_spec(tmp_path, training={"schedule": "cosine"}))
    review = Review.of(run)
    table = tables.configurations(review)
    assert table.headings == ["hyperparameter", "selected configuration", "baseline"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert (rows["schedule"], rows["warmup"]) == (["cosine", "–"], ["0.05", "–"])
    every = tables.trainings(review)
    baseline = next(row for row in every.rows if row[0].text == "trial-0000")
    assert baseline[every.headings.index("warmup")].text == ""
    assert "| constant" not in results_markdown(review.state, review.verdict, review.search)


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


def figures_of(run: RunDir) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', run.paths.report.read_text(), re.DOTALL)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])["figures"]
    return figures


@pytest.mark.parametrize("num_complete", [FEWEST_COMPLETE - 1, FEWEST_COMPLETE])
def test_few_trials_are_not_drawn(tmp_path: Path, num_complete: int) -> None:
    """One dot has axes from -0.9 to 0.99 and tells nothing."""
    search = {"num_trials": num_complete, "early_stopping": None}
    made = make_up(made_up_spec(tmp_path, search=search), until="searched")
    review = write_report(made)
    drawn = {each.id for each in illustrations.search_illustrations(review)}
    assert bool(drawn) == (num_complete == FEWEST_COMPLETE)
    assert drawn <= set(figures_of(made))
    assert ("No figures of this search: 7 trials" in made.paths.report.read_text()) == (not drawn)


def test_colours_show_in_light_and_dark(run: RunDir) -> None:
    """Whatever has a colour of its own; the page gives the others theirs."""
    shown = set()
    for name, figure in figures_of(run).items():
        if name == "confusion":
            continue  # its numbers stand on the colours
        for trace in (each for each in figure["data"] if each.get("x")):
            marker, line = trace.get("marker", {}), trace.get("line", {})
            found = [marker.get("color"), line.get("color"), marker.get("line", {}).get("color")]
            scale = [colour for _, colour in marker.get("colorscale", [])]
            assert not scale or len(scale) > 1
            shown |= {each for each in (*found, *scale) if isinstance(each, str) and each not in ("Grey", "grey")}
    assert len(shown) > 12, "those of the trials among them"
    for colour in shown:
        for ground in ("#ffffff", "#161b22"):  # the page's, light and dark
            lighter, darker = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) > 2.8, (colour, ground)


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    rgb = plotly.colors.hex_to_rgb(colour) if colour.startswith("#") else plotly.colors.unlabel_rgb(colour)
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in np.array(rgb) / 255]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


@pytest.mark.parametrize("num_classes", [62, 60])
def test_many_classes_have_pairs(run: RunDir, num_classes: int) -> None:
    """A matrix of so many classes cannot be read."""
    names = tuple(f"class {number}" for number in range(num_classes))
    review = Review.of(run)
    named = replace(review.started, data=replace(review.started.data, classes=names))
    found = review.predictions
    assert found is not None
    never = np.full((len(found.labels), num_classes - 10), -1e9)
    widened = replace(found, log_probabilities=np.hstack([found.log_probabilities, never]))
    review = replace(review, started=named, predictions=widened)
    shown = errors(review)
    assert shown is not None
    has_matrix = "confusion" in {each.id for each in illustrations.error_illustrations(review)}
    assert has_matrix == (num_classes <= MOST_CLASSES)
    if num_classes > MOST_CLASSES:
        assert shown.pairs is not None
        counts = [int(row[2]) for row in shown.pairs.rows]
        assert counts == sorted(counts, reverse=True) and len(counts) > 10
        label, predicted, count = shown.pairs.rows[0]
        assert widened.confusion()[names.index(label), names.index(predicted)] == int(count)
    wrong = [int(row[2]) for row in shown.classes.rows]
    assert wrong == sorted(wrong, reverse=True) and len(wrong) == MOST_LISTED
    assert f"{shown.classes.rows[0][0]} → class" in report_html(review).decode()


def test_difference_stands_by_role(run: RunDir) -> None:
    review = write_report(run)
    table = tables.roles(review)
    assert [row[0] for row in table.rows] == ["selected configuration", "baseline", "difference"]
    assert table.headings[2:] == ["test accuracy", "test loss (decides)"]
    found = review.verdict.judgement.quantities["test_loss"].difference
    assert table.rows[2][3] == f"{loss_difference(found.value)} ({interval_of(found.interval, loss_difference)})"
    means = [float(row[3].split(" ± ")[0]) for row in table.rows[:2]]
    assert means[0] - means[1] == pytest.approx(found.value, abs=1.1e-4)


def test_images_of_one_role_are_shown(tmp_path: Path) -> None:
    made = make_up(made_up_spec(tmp_path, retrain={"seeds": [0]}), selected_accuracy=0.98, baseline_accuracy=0.95)
    review = Review.of(made)
    assert review.divided is not None
    first, second = divided(review)
    assert first.title == "Only the selected configuration is right"
    assert first.text.endswith(f"{len(review.divided.alone_right('selected'))} images.")
    assert 0 < len(first.pictures) <= MOST_UNFOLDED and second.pictures
    for gallery, is_selected in ((first, True), (second, False)):
        for picture in gallery.pictures:
            mine, other = (int(part.split("/")[0]) for part in picture.lines[1].split(" : "))
            assert (mine > other) == is_selected


def test_first_seed_is_the_model_to_use(run: RunDir) -> None:
    """Whatever the test gave."""
    terms = dict(definitions(write_report(run)))
    assert list(terms) == ["Selected configuration", "Recipe", "Baseline", "Model to use", "Cost of tuning"]
    assert "seed 0, the first of the spec's seeds. It was not picked by its score" in terms["Model to use"]
    assert "seeds 0, 1 and 2" in terms["Baseline"]


def test_wall_time_is_divided_by_stage(run: RunDir) -> None:
    table = tables.costs(Review.of(run))
    seconds = {"s": 1.0, "min": 60.0, "h": 3600.0}

    def seconds_of(text: str) -> float:
        number, unit = text.split()
        return float(number.replace(",", "")) * seconds[unit]

    rows = {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}
    for step in ("search", "final round", "retraining"):
        parts = [seconds_of(rows[step][part]) for part in ("starting", "computing", "waiting")]
        assert sum(parts) == pytest.approx(seconds_of(rows[step]["wall time"]), rel=0.05, abs=0.2)
    assert rows["test"]["computing"] == ""
