"""Which trial is the best: what the search says, and what fresh seeds say of its best few."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from mnist_ray.config import JobSpec, Search
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.study import direction


@dataclass(frozen=True)
class Choice:
    """The trial that validation prefers, and what it was preferred for."""

    training: Training
    score: float  # the objective at its last epoch in the search
    is_complete: bool  # False where the time budget ended the search before any trial reached the full budget
    confirmed_score: float | None = None  # the mean objective of its confirmations, which decided; None without them


@dataclass(frozen=True)
class Confirmation:
    """One configuration of the search, to be trained again on a fresh seed."""

    id: str
    trial: Training
    config: dict[str, Any]


def ranked(search: Search, trials: Sequence[Training]) -> list[Training]:
    """Those that can be chosen, best first by the objective at the last epoch; ties go to the earlier trial.

    They are the trials that reached the full budget; where the time budget left none, those that got furthest.
    """
    complete = [trial for trial in trials if trial.status == "complete"]
    candidates = complete or _furthest([trial for trial in trials if trial.status in ("pruned", "stopped")])
    return sorted(candidates, key=lambda trial: _sign(search) * last_score(search, trial))


def _furthest(trials: Sequence[Training]) -> list[Training]:
    most = max((trial.epochs_done for trial in trials), default=0)
    return [trial for trial in trials if trial.epochs_done == most > 0]


def last_score(search: Search, training: Training) -> float:
    """The objective at the last epoch."""
    return float(training.history[-1][search.objective])


def _sign(search: Search) -> int:
    return -1 if direction(search) == "maximize" else 1


def confirmations(spec: JobSpec, trials: Sequence[Training]) -> list[Confirmation]:
    """What has to be trained before one is chosen: the best configurations, each on the same fresh seeds."""
    if spec.confirm is None:
        return []
    best = ranked(spec.search, trials)[: spec.confirm.top_k]
    seeds = [seed_of_confirmation(spec.seed, number) for number in range(spec.confirm.seeds)]
    return [
        Confirmation(f"confirm-{trial.id}-seed-{number}", trial, {**trial.config, "seed": seed})
        for trial in best
        for number, seed in enumerate(seeds)
    ]


def seed_of_confirmation(seed: int, number: int) -> int:
    """The seed of every configuration's confirmation of that number; below 2**31, and no trial's."""
    digest = hashlib.sha256(f"{seed}/confirmation/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def choose(spec: JobSpec, trials: Sequence[Training], confirmed: Sequence[Training]) -> Choice | None:
    """The configuration with the best mean objective over its confirmations, or the search's best without any.

    The search's own score is left out of that mean: it was the reason why the configuration is looked at, so it is too
    good. A configuration that failed on a seed comes after all that did not. None if there is nothing to choose from.
    """
    candidates = ranked(spec.search, trials)
    if not candidates:
        return None
    is_complete = candidates[0].status == "complete"
    scores = {trial.id: score for trial in candidates if (score := confirmed_score(spec, trial, confirmed)) is not None}
    if not scores:
        return Choice(candidates[0], last_score(spec.search, candidates[0]), is_complete)
    best = min(
        (trial for trial in candidates if trial.id in scores), key=lambda trial: _sign(spec.search) * scores[trial.id]
    )
    return Choice(best, last_score(spec.search, best), is_complete, scores[best.id])


def confirmed_score(spec: JobSpec, trial: Training, confirmed: Sequence[Training]) -> float | None:
    """The mean objective of a trial's confirmations; None if it has none, or one that is not complete."""
    mine = confirmations_of(trial.id, confirmed)
    if not mine or any(training.status != "complete" for training in mine):
        return None
    return fmean(last_score(spec.search, training) for training in mine)


def confirmations_of(trial_id: str, confirmed: Sequence[Training]) -> list[Training]:
    """Those of one trial's configuration."""
    return [training for training in confirmed if training.asked["of"] == trial_id]


@dataclass(frozen=True)
class ScoredModel:
    """A retraining that was tested. scores: what the test stage has on record of it, test_accuracy among them."""

    id: str
    seed: int
    scores: dict[str, Any]


def scored_models(run: RunDir, role: Literal["choice", "baseline"]) -> list[ScoredModel]:
    """The tested retrainings of the choice (which may be the recipe itself) or of the baseline, in the seeds' order."""
    planned = (run.stage("chosen") or {}).get("retrainings", [])
    scores = (run.stage("tested") or {}).get("scores", {})
    return [
        ScoredModel(plan["id"], plan["config"]["seed"], scores[plan["id"]])
        for plan in planned
        if plan["role"].startswith(role) and plan["id"] in scores
    ]
