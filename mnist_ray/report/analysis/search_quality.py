"""Was the search any good: what it cost, what it found, what it cannot know, and what to do about it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from mnist_ray.config import Dimension, JobSpec, Search
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.selection import confirmations_of, confirmed_score, last_score, ranked, scored_models
from mnist_ray.record.study import direction, num_startup_trials
from mnist_ray.report.analysis.edges import edge, space_patch, widen

FEWEST_TO_RANK = 8  # survivors, to say whether early scores ranked like final ones
UNRELATED = 0.3  # Kendall's tau below it
SIGNIFICANT = 0.05
ALIKE = 2.0  # times as much as seeds: trials that differ by less, and not significantly more, may differ by noise alone


@dataclass(frozen=True)
class SearchWarning:
    """Something that makes the search less believable, and what to do about it."""

    text: str
    patch: str | None = None  # YAML for the spec


@dataclass(frozen=True)
class Expectation:
    """What random search would have reached after 1, 2, ... trials: cost means and a band, lower is better."""

    num_random: int  # the trials that it is estimated from
    mean: list[float]
    low: list[float]  # 5 %
    high: list[float]  # 95 %


@dataclass(frozen=True)
class Optimism:
    """One configuration: what the search said of it, and what fresh seeds said."""

    training_id: str
    search_score: float
    confirmed: list[float]  # by seed
    confirmed_mean: float | None  # None where one of them failed

    @property
    def shift(self) -> float | None:
        return None if self.confirmed_mean is None else self.confirmed_mean - self.search_score


@dataclass
class SearchReview:
    """Facts for tables and figures, sentences for people, and warnings."""

    search: Search
    counts: dict[str, int] = field(default_factory=dict)  # trials by status
    spent_s: dict[str, float] = field(default_factory=dict)  # seconds of training by status
    sentences: list[str] = field(default_factory=list)
    warnings: list[SearchWarning] = field(default_factory=list)
    optimism: list[Optimism] = field(default_factory=list)
    seed_spread: float | None = None  # of the objective: one configuration's standard deviation over fresh seeds
    expectation: Expectation | None = None
    best_so_far: list[tuple[int, float]] = field(default_factory=list)  # after so many trials
    batch_sizes: list[dict[str, Any]] = field(default_factory=list)


def review_search(run: RunDir, spec: JobSpec) -> SearchReview | None:
    """None for a run without trials."""
    trials, confirmed = run.trainings("search"), run.trainings("confirm")
    if not trials:
        return None
    review = SearchReview(spec.search)
    _count(review, trials)
    candidates = ranked(spec.search, trials)
    if not candidates:
        review.warnings.append(SearchWarning("No trial got through an epoch, so nothing can be said of the search."))
        return review
    _compare_with_random(review, spec, trials)
    _look_at_noise(review, spec, trials, confirmed)
    _look_at_optimism(review, spec, candidates, confirmed)
    _look_at_edges(review, spec, candidates, (run.stage("chosen") or {}).get("training"))
    _look_at_early_stopping(review, candidates)
    _look_at_batch_sizes(review, trials)
    _carry_over(review, run, spec)
    return review


def rung_epoch(search: Search) -> int:
    """The epoch that every trial reaches, if it does not fail: the first at which one can be stopped."""
    return search.early_stopping.grace_epochs if search.early_stopping else search.num_epochs


def cost(search: Search, score: float) -> float:
    """Lower is better, whatever the objective."""
    return -score if direction(search) == "maximize" else score


def score_at(search: Search, training: Training, epoch: int) -> float | None:
    """The objective after that epoch; None where the training did not get there."""
    found = [row[search.objective] for row in training.history if row["epoch"] == epoch]
    return float(found[0]) if found else None


# --- what it cost ------------------------------------------------------------------------------------------------


def _count(review: SearchReview, trials: Sequence[Training]) -> None:
    for trial in trials:
        status = trial.status or "running"
        review.counts[status] = review.counts.get(status, 0) + 1
        review.spent_s[status] = review.spent_s.get(status, 0.0) + sum(row["elapsed_s"] for row in trial.history)
    total_s = sum(review.spent_s.values()) or 1.0
    told = ", ".join(
        f"{count} {status} ({review.spent_s[status]:.0f} s of training, {100 * review.spent_s[status] / total_s:.0f} %)"
        for status, count in sorted(review.counts.items())
    )
    review.sentences.append(f"{len(trials)} trials: {told}.")
    num_failed = review.counts.get("failed", 0)
    if num_failed and num_failed >= max(2, len(trials) / 5):
        review.warnings.append(
            SearchWarning(f"{num_failed} of {len(trials)} trials failed: look at their reasons in the table below.")
        )


# --- against random search ---------------------------------------------------------------------------------------


def _compare_with_random(review: SearchReview, spec: JobSpec, trials: Sequence[Training]) -> None:
    search = spec.search
    best = math.inf
    for trial in trials:
        if trial.status == "complete":
            best = min(best, cost(search, last_score(search, trial)))
        if math.isfinite(best):
            review.best_so_far.append((trial.asked["number"] + 1, best))
    num_startup = num_startup_trials(search)
    first_random = 1 if spec.recipe_is_in_space else 0
    random = [trial for trial in trials if first_random <= trial.asked["number"] < num_startup and trial.history]
    suggested = [trial for trial in trials if trial.asked["number"] >= num_startup]
    costs = [cost(search, last_score(search, trial)) for trial in random if trial.status != "failed"]
    if len(costs) >= 2:
        review.expectation = expected_best(costs, len(trials))
    _rank_against_random(review, random, suggested)


def expected_best(costs: Sequence[float], num_trials: int) -> Expectation:
    """The expected lowest of k random trials for k = 1 ... num_trials, with the 5 % and 95 % quantiles.

    costs: of random trials. The plug-in estimator of Dodge et al. 2019, "Show Your Work", equations 4 to 7. It cannot
    know of trials better than those it is given, so beyond their number it is too pessimistic for random search.
    """
    ordered = np.sort(np.asarray(costs, dtype=np.float64))
    budgets = np.arange(1, num_trials + 1)[:, None]
    above = np.arange(len(ordered), -1, -1) / len(ordered)  # P(cost >= ordered[i]), then 0
    survival = above[None, :] ** budgets  # P(the lowest of k >= ordered[i])
    weights = survival[:, :-1] - survival[:, 1:]
    cumulative = np.cumsum(weights, axis=1)
    return Expectation(
        len(ordered),
        (weights @ ordered).tolist(),
        _quantile(ordered, cumulative, 0.05),
        _quantile(ordered, cumulative, 0.95),
    )


def _quantile(ordered: npt.NDArray[np.float64], cumulative: npt.NDArray[np.float64], at: float) -> list[float]:
    first = (cumulative < at - 1e-12).sum(axis=1).clip(max=len(ordered) - 1)
    return [float(value) for value in ordered[first]]


def _rank_against_random(review: SearchReview, random: Sequence[Training], suggested: Sequence[Training]) -> None:
    """Mann and Whitney's test (1947) of the scores at the epoch that all trials reach."""
    search, epoch = review.search, rung_epoch(review.search)
    sides = [
        [cost(search, score) for trial in trials if (score := score_at(search, trial, epoch)) is not None]
        for trials in (suggested, random)
    ]
    if min(map(len, sides)) < 4:
        review.sentences.append(
            f"Too few trials to say whether the suggestions were better than random ones ({len(sides[0])} suggested, "
            f"{len(sides[1])} random)."
        )
        return
    p_value = float(stats.mannwhitneyu(sides[0], sides[1], alternative="less").pvalue)
    told = "were better than" if p_value < SIGNIFICANT else "cannot be told from"
    review.sentences.append(
        f"After {_epochs(epoch)} the {len(sides[0])} suggested trials {told} the {len(sides[1])} random ones that the "
        f"search began with (Mann-Whitney p = {p_value:.2g})."
    )


# --- noise and optimism ------------------------------------------------------------------------------------------


def _look_at_noise(
    review: SearchReview, spec: JobSpec, trials: Sequence[Training], confirmed: Sequence[Training]
) -> None:
    """Do trials differ by more than seeds of one configuration do, at the epoch that all of them reach?"""
    search, epoch = spec.search, rung_epoch(spec.search)
    review.seed_spread, _ = _spread_over_seeds(search, confirmed, search.num_epochs)
    spread, freedom = _spread_over_seeds(search, confirmed, epoch)
    scores = [score for trial in trials if (score := score_at(search, trial, epoch)) is not None]
    if spread is None or len(scores) < 3:
        review.sentences.append(
            "Nothing is known of how far seeds alone move a score, because no configuration was confirmed on two or "
            "more seeds."
        )
        return
    p_value = noise_p_value(scores, spread, freedom)
    if review.seed_spread is not None:
        review.sentences.append(
            f"Seeds alone move {search.objective} of one configuration by {review.seed_spread:.2g} (standard deviation "
            f"after {_epochs(search.num_epochs)})."
        )
    if p_value < SIGNIFICANT:
        return
    deviation = float(np.std(scores, ddof=1))
    evidence = (
        f"(after {_epochs(epoch)}: standard deviation {deviation:.2g} against {spread:.2g}, F test p = {p_value:.2g})"
    )
    if deviation < ALIKE * spread:
        review.warnings.append(
            SearchWarning(
                "The differences between trials cannot be told from those between seeds of one configuration "
                f"{evidence}, so the search may have ranked nothing but noise. Its ranges are too narrow, or these "
                "hyperparameters do not matter here: widen search.space, or raise confirm.seeds to be surer."
            )
        )
    else:
        review.sentences.append(
            f"Trials differ by {deviation / spread:.1f} times as much as seeds of one configuration do, and these are "
            f"too few seeds to be sure of that {evidence}: raise confirm.seeds to be surer."
        )


def noise_p_value(scores: Sequence[float], spread: float, freedom: int) -> float:
    """That seeds alone make scores differ like this: the F test of their variance against that over seeds.

    spread: the standard deviation over seeds of one configuration, with so many degrees of freedom.
    """
    ratio = float(np.var(scores, ddof=1)) / max(spread**2, 1e-300)
    return float(stats.f.sf(ratio, len(scores) - 1, freedom))


def _spread_over_seeds(search: Search, confirmed: Sequence[Training], epoch: int) -> tuple[float | None, int]:
    """The standard deviation of one configuration's scores over seeds, pooled, and its degrees of freedom."""
    groups: dict[str, list[float]] = {}
    for training in confirmed:
        score = score_at(search, training, epoch)
        if score is not None:
            groups.setdefault(training.asked["of"], []).append(score)
    several = [scores for scores in groups.values() if len(scores) > 1]
    freedom = sum(len(scores) - 1 for scores in several)
    if not freedom:
        return None, 0
    squares = sum(float(np.var(scores)) * len(scores) for scores in several)
    return math.sqrt(squares / freedom), freedom


def _look_at_optimism(
    review: SearchReview, spec: JobSpec, candidates: Sequence[Training], confirmed: Sequence[Training]
) -> None:
    search = spec.search
    for trial in candidates:
        mine = confirmations_of(trial.id, confirmed)
        if mine:
            scores = [last_score(search, training) for training in mine if training.status == "complete"]
            mean = confirmed_score(spec, trial, confirmed)
            review.optimism.append(Optimism(trial.id, last_score(search, trial), scores, mean))
    shifts = [cost(search, each.shift) for each in review.optimism if each.shift is not None]
    if not shifts:
        review.sentences.append(
            "The best trials were not confirmed on fresh seeds, so their scores are too good by an unknown amount "
            "(the best of many trials looks better than it is): set confirm.top_k and confirm.seeds."
        )
        return
    by = fmean(shifts)
    told = f"{abs(by):.2g} {'worse' if by > 0 else 'better'} in {search.objective} than in the search"
    meaning = "that is how optimistic the search's own scores were" if by > 0 else "no optimism was seen"
    review.sentences.append(
        f"On fresh seeds the best {len(shifts)} configurations scored {told}, on average: {meaning}."
    )
    first = review.optimism[0]
    best = min(
        (each for each in review.optimism if each.confirmed_mean is not None),
        key=lambda each: cost(search, each.confirmed_mean or 0.0),
    )
    if best is not first:
        review.sentences.append(
            f"The confirmation changed the choice: {best.training_id} instead of the search's best, "
            f"{first.training_id}."
        )


# --- the edges of the space --------------------------------------------------------------------------------------


def _look_at_edges(review: SearchReview, spec: JobSpec, candidates: Sequence[Training], chosen_id: str | None) -> None:
    best = next((trial for trial in candidates if trial.id == chosen_id), candidates[0])
    good = candidates[: spec.confirm.top_k if spec.confirm else 3]
    widened: dict[str, Dimension] = {}
    told = []
    for key, dimension in spec.search.space.items():
        end = edge(dimension, best.config[key], [trial.config[key] for trial in good])
        wider = widen(key, dimension, end) if end else None
        if end and wider:
            widened[key] = wider
            told.append(f"{key} {best.config[key]:.4g} at its {end} end")
    if widened:
        review.warnings.append(
            SearchWarning(
                f"The best value lies at the edge of the space, so a better one may lie beyond: {', '.join(told)}. "
                "Search again in the wider space below.",
                space_patch(spec.search.space | widened),
            )
        )


# --- early stopping ----------------------------------------------------------------------------------------------


def _look_at_early_stopping(review: SearchReview, candidates: Sequence[Training]) -> None:
    """Kendall's tau (1938) between the score at the first rung and the last one, of the trials that have both."""
    search = review.search
    if search.early_stopping is None:
        review.sentences.append("No trial was stopped early.")
        return
    epoch = rung_epoch(search)
    pairs = [
        (early, last_score(search, trial))
        for trial in candidates
        if trial.status == "complete" and (early := score_at(search, trial, epoch)) is not None
    ]
    if len(pairs) < FEWEST_TO_RANK:
        review.sentences.append(
            f"Too few trials to say whether early stopping was safe: {len(pairs)} reached the full budget, and "
            f"{FEWEST_TO_RANK} are needed to compare their ranks after {_epochs(epoch)} with the final ones."
        )
        return
    early_scores, final = zip(*pairs, strict=True)
    tau = float(stats.kendalltau(early_scores, final).statistic)
    spread = review.seed_spread
    differ = spread is not None and float(np.std(final, ddof=1)) > 2 * spread
    review.sentences.append(
        f"Of the {len(pairs)} trials with the full budget, scores after {_epochs(epoch)} rank like the final ones with "
        f"Kendall's tau {tau:.2f} (1: the same order, 0: no relation; only trials that were not stopped can be asked)."
    )
    if differ and tau < UNRELATED:
        review.warnings.append(
            SearchWarning(
                f"Early scores do not rank like final ones (Kendall's tau {tau:.2f} of {len(pairs)} trials), so early "
                "stopping may have stopped good trials: raise search.early_stopping.grace_epochs, or set "
                "early_stopping: null."
            )
        )


# --- speed, and what does not carry over -------------------------------------------------------------------------


def _look_at_batch_sizes(review: SearchReview, trials: Sequence[Training]) -> None:
    rows = [
        {
            "batch_size": trial.config["batch_size"],
            "images_per_s": row["train_examples"] / row["elapsed_s"],
            "score": last_score(review.search, trial) if trial.status == "complete" else None,
            "id": trial.id,
        }
        for trial in trials
        for row in trial.history[1:] or trial.history  # the first epoch warms up
        if row["elapsed_s"] > 0
    ]
    table = pd.DataFrame(rows, columns=["batch_size", "images_per_s", "score", "id"])
    for size in sorted(table["batch_size"].unique()):
        group = table[table["batch_size"] == size]
        scores = group.dropna(subset="score").drop_duplicates("id")["score"]
        review.batch_sizes.append(
            {
                "batch_size": int(size),
                "images_per_s": median(group["images_per_s"]),
                "best": (scores.max() if direction(review.search) == "maximize" else scores.min())
                if len(scores)
                else None,
            }
        )


def _carry_over(review: SearchReview, run: RunDir, spec: JobSpec) -> None:
    """What a short search need not say about a long training, and what this run shows of it."""
    short, long = spec.search.num_epochs, spec.retrain.num_epochs
    if short == long:
        return
    text = (
        f"The search trained for {_epochs(short)}, the retraining for {long}: what is best after the one need not be "
        "best after the other."
    )
    choice, baseline = (
        [model.scores["test_accuracy"] for model in scored_models(run, role)] for role in ("choice", "baseline")
    )
    recipe = next((trial for trial in run.trainings("search") if _is_recipe(spec, trial) and trial.history), None)
    chosen = run.training((run.stage("chosen") or {}).get("training") or "")
    if choice and baseline and recipe and chosen and recipe.epochs_done == chosen.epochs_done:
        ahead = cost(spec.search, last_score(spec.search, recipe)) - cost(spec.search, last_score(spec.search, chosen))
        text += (
            f" Here the choice was {abs(ahead):.2g} {'better' if ahead > 0 else 'worse'} than the recipe in "
            f"{spec.search.objective} in the search, and after {long} epochs is "
            f"{100 * (fmean(choice) - fmean(baseline)):+.2f} points from it in test accuracy.".replace("-", "−")
        )
    review.sentences.append(text)


def _is_recipe(spec: JobSpec, trial: Training) -> bool:
    return all(trial.config[key] == value for key, value in spec.recipe.model_dump().items())


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' if number != 1 else ''}"
