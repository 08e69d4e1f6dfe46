"""The report is made from the record alone, the same bytes everywhere, and nothing that a person typed runs in it."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from mnist_ray.errors import SpecError
from mnist_ray.record.exports import write_views
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.tables import COLUMNS, read_results, results_table
from mnist_ray.report import tables
from mnist_ray.report.review import Review
from mnist_ray.report.write import write_report
from mnist_ray.training.checkpoint import model_from_bytes
from tests.report.made_up import Maker, made_up_spec, make_up

HOSTILE = "=cmd|' /C calc'!A0 <script>alert(1)</script><img src=x onerror=alert(2)> \"quoted\" | pipe"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    made = make_up(made_up_spec(tmp_path_factory.mktemp("runs")), failures=(4,), reason=HOSTILE)
    write_report(made)
    return made


class Scripts(HTMLParser):
    """The executable inline scripts of a page, and every address that it names in an attribute."""

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


def test_it_names_no_address_and_allows_its_own_scripts_alone(run: RunDir) -> None:
    page = run.report.read_text()
    found = Scripts(page)
    assert all(address.startswith(("#", "data:image/png;base64,", "data:,")) for address in found.addresses)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "unsafe-eval" not in policy[1] and "http" not in policy[1] and "default-src 'none'" in policy[1]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy[1]))
    assert {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found.scripts} == allowed
    assert len(found.ids) == len(set(found.ids))


def test_it_is_small_enough_to_send(run: RunDir) -> None:
    assert run.report.stat().st_size < 8_000_000


def test_what_a_person_typed_is_text(run: RunDir) -> None:
    page = run.report.read_text().replace(get_plotlyjs(), "")
    assert "<script>alert(1)" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in run.results_markdown.read_text().replace("\\<", "")


def test_no_cell_of_the_csv_is_a_formula_and_reading_gives_it_back(run: RunDir) -> None:
    write_views(run)
    assert f"'{HOSTILE[:8]}" in run.results_csv.read_text()
    assert not re.search(r"(^|,)\"?[=+@]", run.results_csv.read_text(), re.MULTILINE)
    assert read_results(run.results_csv).equals(results_table(run))
    assert list(read_results(run.results_csv).columns) == list(COLUMNS)


def test_it_is_the_same_bytes_from_the_folder_alone_in_another_place_and_time_zone(run: RunDir, tmp_path: Path) -> None:
    copy = tmp_path / run.path.name
    shutil.copytree(run.path, copy)
    for view in copy.iterdir():
        if view.is_file():
            view.unlink()
    command = [sys.executable, "-m", "mnist_ray.cli", "report", str(copy)]
    environment = os.environ | {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for name in ("report.html", "results.md", "model/README.md", "model/model.safetensors"):
        assert (copy / name).read_bytes() == (run.path / name).read_bytes(), name
    assert (copy / "results.csv").is_file()


def test_the_verdict_stands_in_the_report_in_the_markdown_on_the_card_and_on_the_terminal(run: RunDir) -> None:
    review = write_report(run)
    sentence = review.verdict.sentence
    assert sentence in run.report.read_text()
    assert sentence in run.results_markdown.read_text()
    assert sentence in (run.model_folder / "README.md").read_text()
    assert f"verdict: {sentence}" in review.summary()


@pytest.mark.parametrize("until", ["searched", "confirmed", "chosen", "retrained"])
def test_an_unfinished_run_has_a_report_that_says_what_is_missing(tmp_path: Path, until: str) -> None:
    made = make_up(made_up_spec(tmp_path), until=until)
    review = write_report(made)
    page = made.report.read_text()
    assert "This run is not finished" in page
    assert review.verdict.kind == "not tested yet"
    stages = ["confirmation", "the choice", "the retraining", "the test"]
    done = ["searched", "confirmed", "chosen", "retrained"].index(until)
    missing = page[page.index("This run is not finished") : page.index("</ul></div>")]
    assert [stage in missing for stage in stages] == [number >= done for number in range(4)]
    assert not made.model_folder.exists()


def test_a_search_whose_trials_all_failed_has_a_report_that_says_so(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path)
    made = make_up(spec, until="searched", failures=range(spec.search.num_trials))
    review = write_report(made)
    assert "30 failed" in review.summary()[0]
    assert "No trial got through an epoch" in made.report.read_text()


def test_a_run_without_a_search_has_a_report_without_one(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path)
    plan = {"id": "train-recipe-seed-0", "role": "choice", "config": spec.training(spec.recipe, 5, 0).model_dump()}
    made = make_up(spec, until="started")
    made.record_stage("chosen", training=None, hyperparameters=spec.recipe.model_dump(), retrainings=[plan])
    Maker(spec, made).finish()
    review = write_report(made)
    assert review.verdict.sentence.startswith("No verdict: nothing was searched")
    assert "Was the search any good?" not in made.report.read_text()
    assert (made.model_folder / "README.md").is_file()


def test_a_run_that_has_not_begun_has_none(tmp_path: Path) -> None:
    made = RunDir(tmp_path / "begun")
    made.take({"host": "here", "pid": 1, "version": "0"})
    with pytest.raises(SpecError, match="has not begun"):
        write_report(made)


def test_the_model_that_people_take_away_is_the_choice_of_the_first_seed(run: RunDir) -> None:
    weights = (run.model_folder / "model.safetensors").read_bytes()
    first = next(plan["id"] for plan in (run.stage("chosen") or {})["retrainings"] if plan["role"] == "choice")
    assert first.endswith("seed-0")
    assert weights == run.model_content(first)
    model_from_bytes(weights)
    card = (run.model_folder / "README.md").read_text()
    score = (run.stage("tested") or {})["scores"][first]
    assert f"{100 * score['test_accuracy']:.2f} %" in card and f"{score['test_correct']:,} of" in card


def test_a_table_that_is_too_long_keeps_what_was_retrained_and_the_complete_trials(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = results_table(run)
    kept = table[(table["stage"] != "search") | (table["status"] == "complete")]
    monkeypatch.setattr(tables, "MOST_ROWS", len(kept) + 2)
    found = tables.rows(Review.of(run))
    shown = [row[0]["text"] for row in found["rows"]]
    assert set(kept["id"]) < set(shown) and len(shown) == len(kept) + 2
    assert shown == [training_id for training_id in table["id"] if training_id in shown]
    assert found["rows_note"] == f"{len(table) - len(shown)} trials more are in results.csv."


def test_a_long_search_is_sampled_where_each_trial_would_be_drawn_and_the_caption_says_so(tmp_path: Path) -> None:
    from mnist_ray.report.figures import MOST_CURVES

    spec = made_up_spec(tmp_path, search={"num_trials": MOST_CURVES + 30, "num_epochs": 2, "early_stopping": None})
    made = make_up(spec, until="searched")
    write_report(made)
    assert made.report.stat().st_size < 8_000_000
    assert f"The best and an even sample of {MOST_CURVES} of {MOST_CURVES + 30}." in made.report.read_text()
