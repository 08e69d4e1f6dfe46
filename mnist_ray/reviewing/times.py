"""Where the time of a run went, as its record tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mnist_ray.record.rundir import RunDir, Training


@dataclass(frozen=True)
class TrialTime:
    """One training: from when it was asked for to its first epoch's beginning, in its epochs, and the rest."""

    training_id: str
    start_up_s: float
    computing_s: float  # validation included
    waiting_s: float  # for the driver, for its next turn, for a new start after a death


def training_times(trainings: Sequence[Training]) -> list[TrialTime]:
    """Of those that have ended with an epoch or more."""
    return [_time_of(training) for training in trainings if training.history and training.ended]


def _time_of(training: Training) -> TrialTime:
    asked, ended = _seconds(training.asked["at"]), _seconds((training.ended or {})["at"])
    first = training.history[0]
    start_up = max(0.0, _seconds(first["at"]) - first["elapsed_s"] - asked)
    computing = sum(float(row["elapsed_s"]) for row in training.history)
    return TrialTime(training.id, start_up, computing, max(0.0, ended - asked - start_up - computing))


def stage_times(run: RunDir) -> list[dict[str, Any]]:
    """One row a stage: its wall time (a search's over all sessions, others' in the one that ended them), and what its
    trainings computed.
    """
    rows = []
    for stage, name in (("searched", "search"), ("confirmed", "confirm"), ("retrained", "retrain"), ("tested", "test")):
        entries = [entry for entry in run.all_stages() if entry["stage"] == stage]
        if entries:
            computing = sum(row["elapsed_s"] for each in run.trainings(name) for row in each.history)
            wall = (
                entries[-1]["used_hours"] * 3600 if stage == "searched" else sum(each["elapsed_s"] for each in entries)
            )
            rows.append({"stage": name, "wall_s": wall, "computing_s": computing})
    data_s = [entry["data_s"] for entry in run.all_stages() if entry["stage"] == "started" and "data_s" in entry]
    return [{"stage": "data", "wall_s": sum(data_s), "computing_s": 0.0}, *rows] if data_s else rows


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
