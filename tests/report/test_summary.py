"""Summaries for a terminal and a pull request list what was tested first, the best trials next, whatever texts hold."""

import re
from pathlib import Path

import pytest

from mnist_ray.config import Recipe, parse_spec
from mnist_ray.record.events import EpochReported, Event
from mnist_ray.record.rundir import RunDir
from mnist_ray.report.analysis.search_review import review_search
from mnist_ray.report.analysis.verdict import verdict
from mnist_ray.report.formatting import HYPERPARAMETERS
from mnist_ray.report.summary import RETRAINED_COLUMNS, TRIAL_COLUMNS, results_markdown, summary_lines
from tests.record.a_whole_run import REASONS, write_a_whole_run
from tests.record.examples import created, ended, metrics, started, write

RETRAINED, TRIALS = (
    [name for name in columns if name in Recipe.model_fields or name not in HYPERPARAMETERS]
    for columns in (RETRAINED_COLUMNS, TRIAL_COLUMNS)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_a_whole_run(tmp_path_factory.mktemp("results") / "example", num_more_trials=20)


def markdown_of(run: RunDir) -> str:
    return results_markdown(run.state, verdict(run), review_search(run.state))


def cells(line: str) -> list[str]:
    """Split a table's line as GitHub does: a backslash takes the next character's meaning away."""
    parts = re.findall(r"(?:\\.|[^|\\])+", line.strip().removeprefix("|").removesuffix("|"))
    return [re.sub(r"\\(.)", r"\1", part).strip() for part in parts]


def rows_of(markdown: str) -> list[list[str]]:
    return [cells(line) for line in markdown.splitlines() if line.startswith("|")]


def trials_of(markdown: str) -> list[list[str]]:
    return [row for row in rows_of(markdown) if row[0].startswith("trial-")]


def test_tables_keep_their_shape(run: RunDir) -> None:
    """Whatever a reason holds."""
    rows = rows_of(markdown_of(run))
    assert {len(row) for row in rows} == {len(RETRAINED), len(TRIALS)}
    by_id = {row[0]: row for row in rows}
    for number, reason in enumerate(REASONS, start=5):
        assert by_id[f"trial-{number:04d}"][-1] == " ".join(reason.split())
    selected = dict(zip(RETRAINED, by_id["selected"], strict=True))
    assert (selected["test_accuracy"], selected["test_correct"]) == ("99.17 %", "357")


def test_tested_and_best_come_first(run: RunDir) -> None:
    text = markdown_of(run)
    assert text.index("## Retrained models") < text.index("## Trials, best first")
    trials = [dict(zip(TRIALS, row, strict=True)) for row in trials_of(text)]
    assert len(trials) == len(run.state.trainings("search"))
    statuses = [trial["status"] for trial in trials]
    assert statuses == sorted(statuses, key=lambda status: status != "complete")
    losses = [float(trial["val_loss"]) for trial in trials if trial["status"] == "complete"]
    assert len(losses) == 21 and losses == sorted(losses)


def test_highest_accuracy_comes_first(tmp_path: Path) -> None:
    spec = parse_spec({"data": {"name": "digits"}, "search": {"objective": "val_accuracy"}})
    events: list[Event] = [started(spec)]
    for number, num_correct in enumerate((80, 95, 90)):
        training_id = f"trial-{number:04d}"
        reported = EpochReported(id=training_id, metrics=metrics(1, 0.1, num_correct))
        events += [created(training_id, number=number), reported, ended(training_id)]
    trials = trials_of(markdown_of(write(tmp_path, *events)))
    assert [trial[0] for trial in trials] == ["trial-0001", "trial-0002", "trial-0000"]


def test_summary_counts_trials_and_names_models(run: RunDir) -> None:
    lines = summary_lines(run.state, verdict(run), review_search(run.state))
    assert lines[0].startswith(f"{len(run.state.trainings('search'))} trials: ")
    assert "21 complete" in lines[0]
    assert any(
        line.startswith("selected configuration (seed 0): test 99.17 % (357 of 360), loss 0.0200") for line in lines
    )
    assert any(line.startswith("baseline (seed 0): test 98.33 % (354 of 360)") for line in lines)
    assert lines[-1].startswith("verdict: No verdict: the record lacks")
    assert not any("superseded" in line for line in lines)
