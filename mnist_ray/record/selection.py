"""Which configuration is selected: by the search's ranking, and by confirmations of its best few on fresh seeds."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mnist_ray.config import JobSpec, Search, TrainingConfig
from mnist_ray.record.state import Training
from mnist_ray.record.study import direction


@dataclass(frozen=True)
class Selection:
    """The trial that validation prefers, with the scores that decided."""

    training: Training
    score: float  # the objective at its last epoch in the search
    is_complete: bool  # False where the time budget ended the search before any trial reached the full budget
    confirmed_score: float | None = None  # the mean objective of its confirmations, which decided; None without them


@dataclass(frozen=True)
class Confirmation:
    """One configuration of the search, to be trained again on a fresh seed."""

    id: str
    trial: Training
    config: TrainingConfig


def ranked(search: Search, trials: Iterable[Training]) -> list[Training]:
    """Return the trials that can be selected, best first by the objective at the last epoch.

    Ties go to the earlier trial. Candidates are the trials that reached the full budget; where the time budget left
    none, those with the most epochs.
    """
    trials = list(trials)
    candidates = [trial for trial in trials if trial.status == "complete"]
    if not candidates:
        short = [trial for trial in trials if trial.status in ("pruned", "stopped")]
        most = max((trial.epochs_done for trial in short), default=0)
        candidates = [trial for trial in short if trial.epochs_done == most > 0]
    return sorted(candidates, key=lambda trial: _sign(search) * last_score(search, trial))


def last_score(search: Search, training: Training) -> float:
    """Return the objective at the last epoch."""
    return training.history[-1].objective(search.objective)


def _sign(search: Search) -> int:
    return -1 if direction(search) == "maximize" else 1


def confirmations(spec: JobSpec, trials: Iterable[Training]) -> list[Confirmation]:
    """Return the trainings that come before a selection: the best configurations, each on the same fresh seeds."""
    if spec.confirm is None:
        return []
    best = ranked(spec.search, trials)[: spec.confirm.top_k]
    seeds = [seed_of_confirmation(spec.seed, number) for number in range(spec.confirm.seeds)]
    return [
        Confirmation(f"confirm-{trial.id}-seed-{number}", trial, trial.config.model_copy(update={"seed": seed}))
        for trial in best
        for number, seed in enumerate(seeds)
    ]


def seed_of_confirmation(seed: int, number: int) -> int:
    """Return the seed that all configurations' confirmations of that number share; below 2**31, and no trial's."""
    digest = hashlib.sha256(f"{seed}/confirmation/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def select(spec: JobSpec, trials: Iterable[Training], confirmed: Sequence[Training]) -> Selection | None:
    """Select the configuration with the best mean objective over its confirmations, or the search's best without any.

    The search's own score stays out of that mean: it was the reason to look at the configuration, so it is too good.
    A configuration that failed on a seed comes after all that did not. None if there is nothing to select from.
    """
    candidates = ranked(spec.search, trials)
    if not candidates:
        return None
    is_complete = candidates[0].status == "complete"
    scores = {trial.id: score for trial in candidates if (score := confirmed_score(spec, trial, confirmed)) is not None}
    if not scores:
        return Selection(candidates[0], last_score(spec.search, candidates[0]), is_complete)
    best = min(
        (trial for trial in candidates if trial.id in scores), key=lambda trial: _sign(spec.search) * scores[trial.id]
    )
    return Selection(best, last_score(spec.search, best), is_complete, scores[best.id])


def confirmed_score(spec: JobSpec, trial: Training, confirmed: Iterable[Training]) -> float | None:
    """Return the mean objective of a trial's confirmations; None without any, or if one is not complete."""
    mine = confirmations_of(trial.id, confirmed)
    if not mine or any(training.status != "complete" for training in mine):
        return None
    return fmean(last_score(spec.search, training) for training in mine)


def confirmations_of(trial_id: str, confirmed: Iterable[Training]) -> list[Training]:
    """Return the confirmations of one trial."""
    return [training for training in confirmed if training.of == trial_id]
