"""Trials against seeds: do configurations differ by more than one configuration does over its seeds?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mnist_ray.config import Search
from mnist_ray.record.state import Training
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.scores import score_at, scores_at
from mnist_ray.report.analysis.significance import SIGNIFICANT
from mnist_ray.report.formatting import epochs

ALIKE = 2.0  # times as much as seeds: trials that differ by less, and not significantly more, may differ by noise alone


@dataclass(frozen=True)
class SeedSpread:
    """The standard deviation of one configuration's scores over seeds, pooled over configurations."""

    deviation: float  # in the objective's unit
    freedom: int  # degrees of freedom


def seed_spread(search: Search, finals: Sequence[Training], epoch: int) -> SeedSpread | None:
    """Return the spread over seeds after an epoch; None where no configuration has two seeds.

    Only trainings count that are at this epoch where a trial would be: a learning rate that falls over the whole of a
    longer training is not there yet.
    """
    groups: dict[str, list[float]] = {}
    for training in finals:
        score = score_at(search, training, epoch)
        is_like_a_trial = training.config.num_epochs == search.num_epochs or training.config.schedule == "constant"
        if score is not None and training.of is not None and is_like_a_trial:
            groups.setdefault(training.of, []).append(score)
    several = [scores for scores in groups.values() if len(scores) > 1]
    freedom = sum(len(scores) - 1 for scores in several)
    if not freedom:
        return None
    squares = sum(float(np.var(scores)) * len(scores) for scores in several)
    return SeedSpread(math.sqrt(squares / freedom), freedom)


def noise_p_value(scores: Sequence[float], spread: SeedSpread) -> float:
    """Return how likely seeds alone make scores differ like this, by an F test of the two variances."""
    ratio = float(np.var(scores, ddof=1)) / max(spread.deviation**2, 1e-300)
    return float(stats.f.sf(ratio, len(scores) - 1, spread.freedom))


def compare_with_seeds(
    search: Search, trials: Sequence[Training], finals: Sequence[Training], epoch: int
) -> list[Finding]:
    """Say how far seeds alone move a score, and whether trials differ by more at an epoch that all trials reach."""
    spread = seed_spread(search, finals, epoch)
    scores = scores_at(search, trials, epoch)
    if spread is None or len(scores) < 3:
        return [
            Finding(
                "Nothing is known of how far seeds alone move a score, because no configuration ran on two or "
                "more seeds with the search's learning rates (final.seeds)."
            )
        ]
    findings = []
    if (at_the_end := seed_spread(search, finals, search.num_epochs)) is not None:
        text = (
            f"Seeds alone move {search.objective} of one configuration by {at_the_end.deviation:.2g} (standard "
            f"deviation after {epochs(search.num_epochs)})."
        )
        findings.append(Finding(text))
    if (p_value := noise_p_value(scores, spread)) >= SIGNIFICANT:
        findings.append(_indistinct(scores, spread, p_value, epoch))
    return findings


def _indistinct(scores: Sequence[float], spread: SeedSpread, p_value: float, epoch: int) -> Finding:
    """Warn of noise, or say that there are too few seeds where trials still differ by ALIKE times as much."""
    deviation = float(np.std(scores, ddof=1))
    evidence = (
        f"(after {epochs(epoch)}: standard deviation {deviation:.2g} against {spread.deviation:.2g}, "
        f"F test p = {p_value:.2g})"
    )
    if deviation < ALIKE * spread.deviation:
        return Finding(
            "The differences between trials cannot be told from those between seeds of one configuration "
            f"{evidence}, so the search may have ranked nothing but noise. Its ranges are too narrow, or these "
            "hyperparameters do not matter here: widen search.space, or raise final.seeds to be surer.",
            is_warning=True,
        )
    return Finding(
        f"Trials differ {deviation / spread.deviation:.1f} times as much as seeds of one configuration do, but these "
        f"are too few seeds to be sure of that {evidence}: raise final.seeds to be surer."
    )
