"""The best is what validation says of trials that went all the way; tables say what is on record, and stay typed."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config import JobSpec, Search, load_spec, parse_spec
from mnist_ray.record import selection as choosing
from mnist_ray.record.exports import write_views
from mnist_ray.record.rundir import RunDir, Status, Training
from mnist_ray.record.selection import Choice
from mnist_ray.record.tables import (
    COLUMNS,
    HISTORY_COLUMNS,
    best_spec,
    history_table,
    outcome_of,
    read_outcome,
    read_results,
    results_table,
)
from mnist_ray.report.analysis.search_quality import review_search
from mnist_ray.report.analysis.verdict import verdict
from mnist_ray.report.summary import results_markdown, summary_lines

SPEC = parse_spec({"name": "example", "data": {"name": "digits"}, "search": {"num_epochs": 3}})
BY_LOSS = SPEC.search
BY_ACCURACY = parse_spec({"data": {"name": "digits"}, "search": {"objective": "val_accuracy"}}).search


def config(**values: Any) -> dict[str, Any]:
    return {"learning_rate": 0.001, "dropout": 0.25, "batch_size": 128, "num_epochs": 3, "seed": 0, **values}


def row(epoch: int, loss: float = 1.0, correct: int = 90, with_validation: bool = True) -> dict[str, Any]:
    def score(name: str) -> dict[str, Any]:
        return {
            f"{name}_loss": loss,
            f"{name}_accuracy": correct / 100,
            f"{name}_correct": correct,
            f"{name}_examples": 100,
        }

    return {"epoch": epoch, "elapsed_s": 0.25, **score("train"), **(score("val") if with_validation else {})}


def a_trial(number: int, status: Status | None, *losses: float, correct: int = 90) -> Training:
    return Training(
        id=f"trial-{number:04d}",
        stage="search",
        config=config(),
        asked={"number": number},
        history=[row(epoch, loss, correct) for epoch, loss in enumerate(losses, start=1)],
        ended={"status": status, "reason": None} if status else None,
    )


def choose(search: Search, trials: list[Training]) -> Choice | None:
    """By the search alone."""
    return choosing.choose(SPEC.model_copy(update={"search": search}), trials, [])


def chosen_id(search: Search, *trials: Training) -> str | None:
    choice = choose(search, list(trials))
    return choice.training.id if choice else None


# --- the choice


def test_the_last_epoch_decides_not_the_best_one() -> None:
    steady, lucky = a_trial(0, "complete", 0.9, 0.5, 0.4), a_trial(1, "complete", 0.9, 0.1, 0.5)
    choice = choose(BY_LOSS, [steady, lucky])
    assert choice is not None
    assert (choice.training.id, choice.score, choice.is_complete) == ("trial-0000", 0.4, True)


def test_accuracy_decides_where_it_is_asked_to() -> None:
    sure, right = a_trial(0, "complete", 0.1, correct=90), a_trial(1, "complete", 0.3, correct=95)
    assert chosen_id(BY_LOSS, sure, right) == "trial-0000"
    assert chosen_id(BY_ACCURACY, sure, right) == "trial-0001"
    choice = choose(BY_ACCURACY, [sure, right])
    assert choice is not None
    assert choice.score == 0.95


@pytest.mark.parametrize("search", [BY_LOSS, BY_ACCURACY], ids=["val_loss", "val_accuracy"])
def test_of_equals_the_earlier_trial_is_chosen(search: Search) -> None:
    assert chosen_id(search, *(a_trial(number, "complete", 0.4) for number in range(3))) == "trial-0000"


def test_a_trial_that_was_stopped_or_failed_is_not_chosen_where_one_is_complete() -> None:
    others: list[Status | None] = ["pruned", "stopped", "failed", None]
    better = [a_trial(number, status, 0.01, 0.01) for number, status in enumerate(others)]
    assert chosen_id(BY_LOSS, *better, a_trial(9, "complete", 0.9, 0.9, 0.9)) == "trial-0009"


def test_without_a_complete_trial_the_best_of_those_that_got_furthest_is_chosen() -> None:
    trials = [
        a_trial(0, "pruned", 0.01),
        a_trial(1, "stopped", 0.5, 0.3),
        a_trial(2, "pruned", 0.5, 0.2),
        a_trial(3, "failed", 0.1, 0.1, 0.1),
        a_trial(4, None, 0.1, 0.1, 0.1),
    ]
    choice = choose(BY_LOSS, trials)
    assert choice is not None
    assert (choice.training.id, choice.is_complete) == ("trial-0002", False)


@pytest.mark.parametrize("trials", [[], [a_trial(0, "failed", 0.1)], [a_trial(0, "stopped")], [a_trial(0, None, 0.1)]])
def test_nothing_is_chosen_where_nothing_counts(trials: list[Training]) -> None:
    assert choose(BY_LOSS, trials) is None


@given(st.lists(st.tuples(st.sampled_from(["complete", "pruned", "failed"]), st.floats(0, 9)), max_size=8))
def test_no_complete_trial_is_better_than_the_choice(ends: list[tuple[Status, float]]) -> None:
    trials = [a_trial(number, status, loss) for number, (status, loss) in enumerate(ends)]
    complete = [loss for status, loss in ends if status == "complete"]
    choice = choose(BY_LOSS, trials)
    if complete:
        assert choice is not None
        assert choice.training.status == "complete"
        assert choice.score == min(complete)


# --- the tables

REASONS = [
    *("diverged: train_loss is nan in epoch 2", "KeyError: 'x'", "a|b", "a\\|b", "two\nlines", "two\r\nlines"),
    *('says "no", twice', " spaced ", "None", "nan", "NA", "null", "1", "1.50", "True", "-", "#5", "ünï → ☃", "=1+1"),
]


def a_whole_run(path: Path, num_more_trials: int = 0) -> RunDir:
    """A trial for each way to end, and for each nasty reason; two retrainings that were tested."""
    run = RunDir(path)
    ends: list[tuple[Status | None, str | None, int]] = [
        ("complete", None, 3),
        ("pruned", "among the worst at epoch 1", 1),
        ("stopped", "max_hours 1.0 were over at epoch 2", 2),
        ("failed", "died at once", 0),
        (None, None, 2),
        *(("failed", reason, 1) for reason in REASONS),
        *(("complete", None, 3) for _ in range(num_more_trials)),
    ]
    chance = random.Random(0)
    run.record_stage("started", spec=SPEC.model_dump(mode="json"))
    for number, (status, reason, num_epochs) in enumerate(ends):
        training_id = f"trial-{number:04d}"
        learning_rate = 10 ** chance.uniform(-4, -1.6)
        run.record_asked(training_id, "search", config(learning_rate=learning_rate, seed=number), number=number)
        for epoch in range(1, num_epochs + 1):
            run.record_epoch(training_id, row(epoch, 10 ** chance.uniform(-12, 3), chance.randrange(100)))
        if status:
            run.record_ended(training_id, status, reason, workers=1, threads=1, device="cpu", num_failures=0)
    plans = {"retrain-trial-0000-seed-0": "choice", "retrain-recipe-seed-0": "baseline"}
    run.record_stage(
        "chosen",
        training="trial-0000",
        hyperparameters={"learning_rate": 0.003, "dropout": 0.1, "batch_size": 64},
        score=0.03,
        retrainings=[{"id": training_id, "role": role, "config": config()} for training_id, role in plans.items()],
    )
    for training_id in (*plans, "retrain-trial-0001-seed-0"):
        run.record_asked(training_id, "retrain", config())
        for epoch in (1, 2, 3):
            run.record_epoch(training_id, row(epoch, 0.1 / epoch, 99, with_validation=False))
        run.record_ended(training_id, "complete", None, workers=2, threads=1, device="cpu")
    run.record_stage("unsealed")
    scores = {
        training_id: {
            "test_loss": 0.02,
            "test_accuracy": correct / 360,
            "test_correct": correct,
            "test_examples": 360,
            "test_logits": run.put_blob(f"what {training_id} said".encode(), "logits"),
        }
        for training_id, correct in zip(plans, (357, 354), strict=True)
    }
    run.record_stage("tested", scores=scores, elapsed_s=0.5)
    return run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = a_whole_run(tmp_path_factory.mktemp("results") / "example", num_more_trials=25)
    write_views(run)
    return run


def test_a_row_says_what_is_on_record(whole_run: RunDir) -> None:
    table: Any = results_table(whole_run).set_index("id")
    assert table["status"].iloc[:5].tolist() == ["complete", "pruned", "stopped", "failed", "running"]
    assert table["epochs_done"].iloc[:5].tolist() == [3, 1, 2, 0, 2]
    assert table.loc["trial-0003", "reason"] == "died at once"
    assert table.loc["trial-0003", "log"] == "logs/trial-0003.log"
    assert pd.isna(table.loc["trial-0003", "val_loss"])
    assert pd.isna(table.loc["trial-0004", "workers"])
    roles = {"choice": "retrain-trial-0000-seed-0", "baseline": "retrain-recipe-seed-0"}
    for role, training_id in roles.items():
        assert table.loc[training_id, "role"] == role
    assert table.loc["retrain-trial-0001-seed-0", "role"] == "superseded"
    choice = table.loc[roles["choice"]]
    assert (choice["test_correct"], choice["test_examples"], choice["workers"]) == (357, 360, 2)
    assert choice["elapsed_s"] == 0.75
    assert pd.isna(choice["val_loss"]), "the retraining has no validation split"
    last = whole_run.trainings("search")[0].history[-1]
    assert table.loc["trial-0000", "val_loss"] == last["val_loss"]
    assert table.loc["trial-0000", "val_correct"] == last["val_correct"]


@pytest.mark.parametrize("name", ["results_csv", "results_parquet"])
def test_the_table_reads_back_exactly_and_typed(whole_run: RunDir, name: str) -> None:
    table = results_table(whole_run)
    again = read_results(getattr(whole_run, name))
    assert {column: str(kind) for column, kind in again.dtypes.items()} == COLUMNS
    assert set(COLUMNS.values()) == {"string", "Int64", "Float64"}, "kinds in which missing stays missing"
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert again["reason"].iloc[5 : 5 + len(REASONS)].tolist() == REASONS


def test_every_epoch_of_everything_is_in_the_history(whole_run: RunDir) -> None:
    history = pd.read_parquet(whole_run.history_parquet)
    pd.testing.assert_frame_equal(history, history_table(whole_run), check_exact=True)
    assert {column: str(kind) for column, kind in history.dtypes.items()} == HISTORY_COLUMNS
    trainings = [*whole_run.trainings("search"), *whole_run.trainings("retrain")]
    assert len(history) == sum(training.epochs_done for training in trainings)
    last = trainings[0].history[-1]
    of_first = history[history["id"] == trainings[0].id].iloc[-1]
    assert all(of_first[name] == last[name] for name in HISTORY_COLUMNS if name in last)


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_a_run_that_just_began_has_tables_too(tmp_path: Path, num_epochs: int) -> None:
    run = RunDir(tmp_path)
    run.record_stage("started", spec=SPEC.model_dump(mode="json"))
    for number in range(num_epochs):
        run.record_asked(f"trial-{number:04d}", "search", config(), number=number)
    write_views(run)
    pd.testing.assert_frame_equal(read_results(run.results_csv), results_table(run))
    assert len(read_results(run.results_parquet)) == num_epochs
    assert pd.read_parquet(run.history_parquet).empty
    assert read_outcome(run)["choice"] is None
    assert not run.best_spec.exists()


def markdown_of(run: RunDir, spec: JobSpec) -> str:
    return results_markdown(run, spec, verdict(run), review_search(run, spec))


def cells(line: str) -> list[str]:
    """As GitHub reads a table's line: a backslash takes the next character's meaning away."""
    parts = re.findall(r"(?:\\.|[^|\\])+", line.strip().removeprefix("|").removesuffix("|"))
    return [re.sub(r"\\(.)", r"\1", part).strip() for part in parts]


def test_the_readable_table_keeps_its_shape_whatever_a_reason_says(whole_run: RunDir) -> None:
    lines = markdown_of(whole_run, SPEC).splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert {len(part) for part in rows} == {10, 13}
    by_id = {part[0]: part for part in rows}
    for number, reason in enumerate(REASONS, start=5):
        assert by_id[f"trial-{number:04d}"][-1] == " ".join(reason.split())
    assert by_id["choice"][7:9] == ["99.17 %", "357"]


def test_the_readable_table_begins_with_what_was_tested_and_the_best(whole_run: RunDir) -> None:
    text = markdown_of(whole_run, SPEC)
    assert text.index("## Retrained models") < text.index("## Trials, best first")
    rows = [cells(line) for line in text.splitlines() if line.startswith("| trial-")]
    assert len(rows) == len(whole_run.trainings("search"))
    complete = [float(part[6]) for part in rows if part[1] == "complete"]
    assert complete == sorted(complete)
    assert [part[1] for part in rows[: len(complete)]] == ["complete"] * len(complete)


def test_by_accuracy_the_highest_comes_first(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number, correct in enumerate((80, 95, 90)):
        run.record_asked(f"trial-{number:04d}", "search", config(), number=number)
        run.record_epoch(f"trial-{number:04d}", row(1, 0.1, correct))
        run.record_ended(f"trial-{number:04d}", "complete", None)
    spec = parse_spec({"data": {"name": "digits"}, "search": {"objective": "val_accuracy"}})
    lines = markdown_of(run, spec).splitlines()
    assert [cells(line)[0] for line in lines if line.startswith("| trial-")] == [
        "trial-0001",
        "trial-0002",
        "trial-0000",
    ]


# --- for programs and for going on


def test_the_outcome_is_readable_by_programs(whole_run: RunDir) -> None:
    outcome = read_outcome(whole_run)
    assert outcome == json.loads(whole_run.outcome.read_text()) == outcome_of(whole_run, SPEC)
    assert outcome["trials"] == {"complete": 26, "failed": 1 + len(REASONS), "pruned": 1, "running": 1, "stopped": 1}
    assert outcome["choice"]["training"] == "trial-0000"
    assert outcome["tested"]["retrain-trial-0000-seed-0"]["test_correct"] == 357
    assert [entry["stage"] for entry in outcome["stages"]] == ["started", "chosen", "unsealed", "tested"]
    assert outcome["test_unsealed_at"] == outcome["stages"][2]["at"]


def test_the_best_spec_trains_the_choice_again(whole_run: RunDir) -> None:
    best = load_spec(whole_run.best_spec)
    assert best.recipe.model_dump() == {"learning_rate": 0.003, "dropout": 0.1, "batch_size": 64}
    assert best.retrain == SPEC.retrain.model_copy(update={"baseline": False})
    assert (best.data, best.seed) == (SPEC.data, SPEC.seed)
    assert best.name == "example-best"


@pytest.mark.parametrize("length", [1, 59, 60, 64])
def test_the_best_spec_of_a_long_name_has_a_name_too(length: int) -> None:
    spec: JobSpec = SPEC.model_copy(update={"name": "x" * length})
    assert best_spec(spec, spec.recipe.model_dump()).name.endswith("-best")


def test_the_summary_counts_trials_and_names_the_models(whole_run: RunDir) -> None:
    lines = summary_lines(whole_run, verdict(whole_run), review_search(whole_run, SPEC))
    assert lines[0].startswith(f"{len(whole_run.trainings('search'))} trials: ")
    assert "26 complete" in lines[0]
    assert any(line.startswith("choice (seed 0): test 99.17 % (357 of 360), loss 0.0200") for line in lines)
    assert any(line.startswith("baseline (seed 0): test 98.33 % (354 of 360)") for line in lines)
    assert lines[-1].startswith("verdict: No verdict: the record does not hold what the models said")
    assert not any("superseded" in line for line in lines)
