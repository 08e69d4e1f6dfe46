"""The table of runs that `mnist-ray results` prints, fitted to the terminal's width."""

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime

from mnist_ray.record.listing import ListedRun
from mnist_ray.shown import duration, shown

GAP = "  "
OUTCOME = "outcome"
RIGHT = ("accuracy", "baseline", "difference", "took")
DROPPED = ("took", "baseline", "time", "data", "difference")  # the first ones first, where the width is too small
SHORTEST_NAME = 12


def output_width() -> int | None:
    """Return the columns of the terminal; None where the output goes elsewhere, and nothing need be left out."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.__stdout__.fileno()).columns)  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):
        return None


def run_table(runs: Sequence[ListedRun], width: int | None) -> str:
    """Return one line a run below the headings, none of them longer than `width`."""
    rows = [_cells(run) for run in runs]
    names = list(rows[0])
    dropped = iter(DROPPED)
    while width is not None and _width(names, rows) > width and (name := next(dropped, None)):
        names.remove(name)
    if width is not None and (excess := _width(names, rows) - width) > 0:
        longest = max(SHORTEST_NAME, max(len(row["run"]) for row in rows) - excess)
        rows = [row | {"run": _cut(row["run"], longest)} for row in rows]
    lines = _lines(names, rows)
    return "\n".join(lines if width is None else (_cut(line, width) for line in lines))


def _cells(run: ListedRun) -> dict[str, str]:
    began = datetime.fromisoformat(run.began_at).astimezone() if run.began_at else None
    return {
        "run": shown(run.run, kept=""),
        "date": f"{began:%Y-%m-%d}" if began else "",
        "time": f"{began:%H:%M}" if began else "",
        "data": run.data or "",
        "accuracy": _percent(run.test_accuracy),
        "baseline": _percent(run.baseline_test_accuracy),
        "difference": _difference(run),
        "took": duration(run.elapsed_s) if run.status == "finished" else "",
        OUTCOME: shown(_outcome(run), kept=""),
    }


def _outcome(run: ListedRun) -> str:
    if run.progress is None:
        return run.verdict or ""
    count = f" {run.progress.done}/{run.progress.total}" if run.progress.total else ""
    if run.running_since is None:
        return f"{run.progress.stage}{count}, stopped"
    since, now = datetime.fromisoformat(run.running_since).astimezone(), datetime.now().astimezone()
    day = "" if since.date() == now.date() else f"{since:%m-%d} "
    return f"{run.progress.stage}{count}, running since {day}{since:%H:%M}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _difference(run: ListedRun) -> str:
    if run.difference is None:
        return ""
    is_loss = run.decided_by == "test_loss"
    text = f"{run.difference:+.4f} loss" if is_loss else f"{100 * run.difference:+.2f} points"
    return text.replace("-", "−")


def _widths(names: Sequence[str], rows: Sequence[dict[str, str]]) -> dict[str, int]:
    return {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}


def _width(names: Sequence[str], rows: Sequence[dict[str, str]]) -> int:
    return sum(_widths(names, rows).values()) + len(GAP) * (len(names) - 1)


def _lines(names: Sequence[str], rows: Sequence[dict[str, str]]) -> Iterator[str]:
    widths = _widths(names, rows)
    for row in ({name: name for name in names}, *rows):
        cells = (row[name].rjust(widths[name]) if name in RIGHT else row[name].ljust(widths[name]) for name in names)
        yield GAP.join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
