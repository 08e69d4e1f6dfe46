"""The selected configuration: by the search's ranking, and by a final round on fresh seeds with the recipe in it."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mnist_ray.config import Hyperparameters, JobSpec, Search, TrainingConfig
from mnist_ray.record.events import FinalistMean, FinalResult
from mnist_ray.record.state import Training
from mnist_ray.record.study import direction

RECIPE = "recipe"  # the name of the recipe as published among the finalists


@dataclass(frozen=True)
class Selection:
    """The configuration that validation prefers, with the scores that decided."""

    training: Training  # its trial; the recipe's is the first one
    score: float | None  # the objective at the trial's last epoch in the search; None where the trial has none
    is_complete: bool  # False where the time budget ended the search before any trial reached the full budget
    final: FinalResult | None = None  # None without a final round


@dataclass(frozen=True)
class FinalTraining:
    """One training of the final round."""

    id: str
    of: str  # a trial, or RECIPE
    config: TrainingConfig


def ranked(search: Search, trials: Iterable[Training]) -> list[Training]:
    """Return the trials that can be selected, best first by the objective at the last epoch.

    Trials that reached the full budget come before those that did not, and then those that got further. Ties go to
    the earlier trial.
    """
    able = [trial for trial in trials if trial.history and trial.status in ("complete", "pruned", "stopped")]
    return sorted(
        able,
        key=lambda trial: (trial.status != "complete", -trial.epochs_done, _sign(search) * last_score(search, trial)),
    )


def last_score(search: Search, training: Training) -> float:
    """Return the objective at the last epoch."""
    return training.history[-1].objective(search.objective)


def _sign(search: Search) -> int:
    return -1 if direction(search) == "maximize" else 1


# --- the final round -----------------------------------------------------------------------------------------------


def final_trainings(spec: JobSpec, trials: Iterable[Training]) -> list[FinalTraining]:
    """Return the trainings of the final round: each finalist, and the recipe last, on the same fresh seeds.

    The finalists are the best configurations of the search; the recipe is none of them, nor is any of them twice.
    """
    if spec.final is None:
        return []
    finalists: dict[Hyperparameters, str] = {}
    for trial in ranked(spec.search, trials):
        if trial.config.hyperparameters != spec.baseline and len(finalists) < spec.final.top_k:
            finalists.setdefault(trial.config.hyperparameters, trial.id)
    finalists[spec.baseline] = RECIPE
    return [training for values, name in finalists.items() for training in finalist_trainings(spec, name, values)]


def finalist_trainings(spec: JobSpec, name: str, values: Hyperparameters) -> list[FinalTraining]:
    """Return one configuration's trainings in the final round. name: its trial, or RECIPE."""
    assert spec.final is not None
    return [
        FinalTraining(
            f"final-{name}-seed-{number}",
            name,
            spec.training_config(values, spec.final_epochs, seed_of_final(spec.seed, number)),
        )
        for number in range(spec.final.seeds)
    ]


def seed_of_final(seed: int, number: int) -> int:
    """Return the seed that all finalists' trainings of that number share.

    It is 2**31 or more, where neither a trial nor a retraining has its seed.
    """
    digest = hashlib.sha256(f"{seed}/final".encode()).digest()
    return 2**31 + (int.from_bytes(digest[:4], "little") >> 1) + number


def select(spec: JobSpec, trials: Sequence[Training], finals: Iterable[Training]) -> Selection | None:
    """Select by the final round, or by the search's ranking alone where the spec has no final round.

    None if there is nothing to select from. The search's own score stays out of the final: it was the reason to look
    at the configuration, so it is too good. Raises ValueError where the recipe has no result in the final.
    """
    candidates = ranked(spec.search, trials)
    if not candidates:
        return None
    is_complete = candidates[0].status == "complete"
    if spec.final is None:
        return Selection(candidates[0], last_score(spec.search, candidates[0]), is_complete)
    planned = final_trainings(spec, trials)
    ids = {plan.id for plan in planned}
    result = final_result(spec, [plan.of for plan in planned], [training for training in finals if training.id in ids])
    name = winner(spec, result)
    trial = next(trial for trial in trials if (trial.number == 0 if name == RECIPE else trial.id == name))
    score = last_score(spec.search, trial) if trial.history else None
    return Selection(trial, score, is_complete, result)


def final_result(spec: JobSpec, names: Iterable[str], finals: Sequence[Training]) -> FinalResult:
    """Return the finalists' means and the margin.

    names: of the finalists. The margin is `final.keep_recipe_within_se` standard errors of the difference of two
    means, s * sqrt(2 / seeds); s is pooled over all configurations that failed on no seed, and is taken within them.
    """
    assert spec.final is not None
    scores: dict[str, list[float] | None] = {}
    for name in dict.fromkeys(names):
        mine = [training for training in finals if training.of == name]
        is_whole = len(mine) == spec.final.seeds and all(each.status == "complete" and each.history for each in mine)
        scores[name] = [last_score(spec.search, training) for training in mine] if is_whole else None
    means = {name: None if each is None else fmean(each) for name, each in scores.items()}
    deviation = pooled_deviation([each for each in scores.values() if each is not None])
    margin = spec.final.keep_recipe_within_se * (deviation or 0.0) * math.sqrt(2 / spec.final.seeds)
    return FinalResult(tuple(FinalistMean(name, mean) for name, mean in means.items()), deviation, margin)


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups; None where no group has two values."""
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return None
    squares = sum((value - fmean(group)) ** 2 for group in groups for value in group)
    return math.sqrt(squares / freedom)


def winner(spec: JobSpec, result: FinalResult) -> str:
    """Return the finalist with the best mean if it beats the recipe by more than the margin, else RECIPE.

    Raises ValueError where the recipe has no mean.
    """
    recipe = result.mean_of(RECIPE)
    if recipe is None:
        raise ValueError("the recipe has no result in the final round")
    sign = _sign(spec.search)
    means = {each.of: each.mean for each in result.finalists if each.of != RECIPE and each.mean is not None}
    best = min(means, key=lambda name: sign * means[name], default=RECIPE)
    is_beaten = best != RECIPE and sign * (recipe - means[best]) > result.margin
    return best if is_beaten else RECIPE
