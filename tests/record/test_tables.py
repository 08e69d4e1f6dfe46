"""Tables show what is on record, and read back exactly and typed."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnist_ray.record.exports import write_exports
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.tables import (
    COLUMNS,
    HISTORY_COLUMNS,
    cell,
    history_table,
    read_results,
    results_csv,
    results_table,
)
from tests.record.a_whole_run import BASELINE, REASONS, SELECTED, SUPERSEDED, write_a_whole_run
from tests.record.examples import created, started, write


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = write_a_whole_run(tmp_path_factory.mktemp("results") / "example", num_more_trials=25)
    write_exports(run.path)
    return run


def test_rows_show_what_is_recorded(whole_run: RunDir) -> None:
    table: Any = results_table(whole_run.state).set_index("id")
    assert table["status"].iloc[:5].tolist() == ["complete", "pruned", "stopped", "failed", "running"]
    assert table["epochs_done"].iloc[:5].tolist() == [3, 1, 2, 0, 2]
    assert table.loc["trial-0003", "reason"] == "died at once"
    assert table.loc["trial-0003", "log"] == "logs/trial-0003.log"
    assert pd.isna(table.loc["trial-0000", "log"])
    assert pd.isna(table.loc["trial-0003", "val_loss"])
    assert pd.isna(table.loc["trial-0004", "workers"])
    last = whole_run.state.trainings("search")[0].history[-1]
    for name, value in last.columns().items():
        if name in COLUMNS and name != "elapsed_s":
            assert table.loc["trial-0000", name] == value
    assert table.loc["trial-0000", "elapsed_s"] == 0.75


def test_retrainings_have_their_roles(whole_run: RunDir) -> None:
    """In the order of the plan, what a longer search made old last."""
    table: Any = results_table(whole_run.state).set_index("id")
    retrained = table[table["stage"] == "retrain"]
    assert retrained["role"].to_dict() == {SELECTED: "selected", BASELINE: "baseline", SUPERSEDED: "superseded"}
    assert retrained.index.tolist() == [SELECTED, BASELINE, SUPERSEDED]
    row = table.loc[SELECTED]
    assert (row["test_correct"], row["test_examples"], row["workers"]) == (357, 360, 2)
    assert row["test_accuracy"] == 357 / 360
    assert pd.isna(row["val_loss"]), "the retraining has no validation split"
    assert pd.isna(table.loc[SUPERSEDED, "test_loss"])


@pytest.mark.parametrize("name", ["results_csv", "results_parquet"])
def test_tables_read_back_exactly(whole_run: RunDir, name: str) -> None:
    table = results_table(whole_run.state)
    again = read_results(getattr(whole_run.paths, name))
    assert {column: str(kind) for column, kind in again.dtypes.items()} == COLUMNS
    assert set(COLUMNS.values()) == {"string", "Int64", "Float64"}, "kinds in which missing stays missing"
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert again["reason"].iloc[5 : 5 + len(REASONS)].tolist() == REASONS


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "'=1", "''", "'"])
def test_formulas_are_defused(whole_run: RunDir, text: str, tmp_path: Path) -> None:
    table = results_table(whole_run.state)
    table.loc[0, "reason"] = text
    path = tmp_path / "results.csv"
    path.write_text(results_csv(table), newline="")
    assert pd.read_csv(path, keep_default_na=False)["reason"].iloc[0] == f"'{text}"
    assert read_results(path)["reason"].iloc[0] == text


def test_histories_hold_every_epoch(whole_run: RunDir) -> None:
    history = pd.read_parquet(whole_run.paths.history_parquet)
    state = whole_run.state
    pd.testing.assert_frame_equal(history, history_table(state), check_exact=True)
    assert {column: str(kind) for column, kind in history.dtypes.items()} == HISTORY_COLUMNS
    trainings = [*state.trainings("search"), *state.trainings("retrain")]
    assert len(history) == sum(training.epochs_done for training in trainings)
    last = trainings[0].history[-1].columns()
    of_first = history[history["id"] == trainings[0].id].iloc[-1]
    assert all(of_first[name] == last[name] for name in last)


@pytest.mark.parametrize("num_trials", [0, 1])
def test_new_runs_have_tables(tmp_path: Path, num_trials: int) -> None:
    run = write(tmp_path, started(), *(created(f"trial-{number:04d}") for number in range(num_trials)))
    write_exports(tmp_path)
    pd.testing.assert_frame_equal(read_results(run.paths.results_csv), results_table(run.state))
    assert len(read_results(run.paths.results_parquet)) == num_trials
    assert pd.read_parquet(run.paths.history_parquet).empty


def test_cells_fit_a_markdown_table() -> None:
    assert [cell("reason", reason) for reason in ("a|b", "two\r\nlines", " spaced ", "<b>")] == [
        *("a\\|b", "two lines", "spaced", "\\<b>")
    ]
    assert (cell("test_accuracy", 0.99165), cell("elapsed_s", 1.25), cell("val_loss", 0.123456)) == (
        *("99.17 %", "1.2", "0.1235"),
    )
    assert (cell("val_loss", pd.NA), cell("epochs_done", 3)) == ("", "3")
