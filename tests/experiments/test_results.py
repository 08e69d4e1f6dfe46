"""The figures of docs/results.md are those of the files beside it."""

import pytest

from experiments.results import FOLDER, PAGE, TABLES, markers


@pytest.mark.parametrize("name", TABLES)
def test_table_is_that_of_the_files(name: str) -> None:
    begin, end = markers(name)
    _, found, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    table, found_end, _ = rest.partition(end)
    assert found and found_end, f"{PAGE} lacks the table {name}"
    assert table.strip() == TABLES[name]().strip(), f"{PAGE}: run python -m experiments.results"


def test_results_fit_into_the_repository() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 10e6
