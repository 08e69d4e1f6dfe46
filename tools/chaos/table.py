"""What the loop found, as figures and as the table in docs/reliability.md."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from tools.chaos.killing import Kill
from tools.chaos.loop import Report, Tried
from tools.chaos.processes import Role
from tools.chaos.session import STAGES

# The table's marker lines, by the workers of each retraining.
MARKERS = {
    2: ("<!-- chaos:begin -->", "<!-- chaos:end -->"),
    1: ("<!-- chaos side by side:begin -->", "<!-- chaos side by side:end -->"),
}
RETRAININGS = {
    2: "two retrainings on two workers each, one after the other",
    1: "two retrainings on one worker each, side by side",
}
ROLES: dict[Role, str] = {"driver": "driver", "trial": "trial", "rank": "rank", "other": "other worker"}


def as_json(report: Report) -> dict[str, Any]:
    content = dataclasses.asdict(report)
    return content | {"is_good": report.is_good, "figures": [list(row) for row in figures(report)]}


def markdown(report: Report, command: str, elapsed_s: float, day: str) -> str:
    heading = (
        f"Made by `make chaos` ({command}) on {day}, in {elapsed_s / 60:.0f} minutes: "
        f"{'everything held' if report.has_held else 'NOT everything held'}"
        f"{'' if report.is_enough else f'; NOT {report.wanted} kills in every stage'}."
    )
    return "\n".join([heading, "", *_kill_rows(report), "", "| what | figure |", "|---|---|", *_figure_rows(report)])


def _figure_rows(report: Report) -> list[str]:
    return [f"| {what} | {figure} |" for what, figure in figures(report)]


def _kill_rows(report: Report) -> list[str]:
    kills = [kill for tried in report.tried for kill in tried.story.kills]
    rows = [[stage, *_counts([kill for kill in kills if kill.stage == stage])] for stage in STAGES]
    rows.append(["all", *_counts(kills)])
    head = ["kills in", *ROLES.values(), "all"]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _counts(kills: Sequence[Kill]) -> list[str]:
    return [str(sum(kill.target == role for kill in kills)) for role in ROLES] + [str(len(kills))]


def figures(report: Report) -> list[tuple[str, str]]:
    tried = report.tried
    one, two = ([each for each in tried if each.concurrent == count] for count in (1, 2))
    compared = sum(each.num_retrainings_compared for each in tried)
    lost = [seconds for each in tried for seconds in each.lost_s] or [0.0]
    return [
        (f"runs, each of 8 trials, a selection, {RETRAININGS[report.workers]}, and the test", str(len(tried))),
        ("the same command started again", str(sum(len(each.story.exit_codes) - 1 for each in tried))),
        ("runs that ended with exit code 0", f"{sum(_has_ended(each) for each in tried)} of {len(tried)}"),
        ("drivers that gave up by themselves", str(sum(len(each.story.gave_up) for each in tried))),
        ("finished trials and retrainings that ran twice", str(sum(len(each.verdict.ran_twice) for each in tried))),
        ("trials left running in the study", str(sum(len(each.verdict.left_running) for each in tried))),
        ("one trial at a time: runs equal to the undisturbed one in every trial, epoch and weight", _equal(one)),
        ("two at a time: runs whose trainings are equal where their configurations are", _equal(two)),
        ("retrainings compared bit for bit", str(compared)),
        ("other faults of record, tables and study", str(sum(len(each.verdict.faults) for each in tried))),
        ("processes left 15 s after a run's end", str(sum(len(each.story.left_behind) for each in tried))),
        ("seconds lost by a kill: median, worst", f"{statistics.median(lost):.1f}, {max(lost):.1f}"),
        ("seconds of a run: undisturbed, median of the killed", _durations(report)),
        ("control, with nothing left of the record after a driver's death", _control(report.control)),
    ]


def _has_ended(tried: Tried) -> bool:
    return tried.story.stuck is None and tried.story.exit_codes[-1] == 0


def _equal(tried: Sequence[Tried]) -> str:
    return f"{sum(not each.verdict.differences for each in tried)} of {len(tried)}"


def _durations(report: Report) -> str:
    killed = [each.story.elapsed_s for each in report.tried] or [0.0]
    return f"{report.reference.elapsed_s:.0f}, {statistics.median(killed):.0f}"


def _control(control: Tried | None) -> str:
    if control is None:
        return "not run"
    if control.verdict.is_good:
        return "NOT noticed"
    return f"noticed: {len(control.verdict.ran_twice)} finished trainings ran twice"
