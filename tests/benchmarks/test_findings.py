"""What a benchmark leaves: tables that a page takes in, and figures for programs."""

import json
from pathlib import Path

import pytest

from mnist_ray.benchmarks.findings import Section, put_between
from mnist_ray.benchmarks.run import BEGIN, END, report
from mnist_ray.cli.main import main

SECTION = Section("A title", "How.", [{"loop": "usual", "wall ms": 2.0}, {"loop": "ours", "wall ms": 1.0}], {"r": 2.0})


def test_figures_are_written_for_people_and_for_programs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    text = report([SECTION], "the command", tmp_path / "figures.json", page)
    assert page.read_text() == f"above\n{BEGIN}\n{text}\n{END}\nbelow\n"
    assert "Measured with `the command`" in text and "- r: **2**" in text
    assert [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| o")] == [
        [" ours   ", " 1.0       "]
    ]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["sections"][0]["ratios"] == {"r": 2.0}
    assert figures["machine"]["num_cpus"] >= 1


def test_a_page_without_the_marker_lines_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the lines"):
        put_between(page, BEGIN, END, "text")
    assert page.read_text() == "no markers"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["step"],
            "PART 'step' is unknown: use some of steps, kernels, workers, retraining, search, groups, startup, peers",
        ),
        (["steps", "--rounds", "0"], "--rounds 0: must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *arguments]) == 2
    assert capsys.readouterr().err == f"mnist-ray: {said}\n"
