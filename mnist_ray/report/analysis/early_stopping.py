"""The safety of early stopping: whether early scores rank like final ones."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from mnist_ray.config import Search
from mnist_ray.record.selection import last_score
from mnist_ray.record.state import Training
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.noise import SeedSpread
from mnist_ray.report.analysis.scores import score_at
from mnist_ray.report.formatting import epochs

FEWEST_TO_RANK = 8  # trials with the full budget
UNRELATED = 0.3  # Kendall's tau below it


def judge_early_stopping(
    search: Search, candidates: Sequence[Training], spread: SeedSpread | None, epoch: int
) -> list[Finding]:
    """Compare ranks at the first rung with final ones by Kendall's tau (1938), of the trials that have both.

    spread: over seeds after the full budget. Final scores that differ no more than seeds do have no ranks to compare.
    epoch: of the first rung.
    """
    if epoch >= search.num_epochs:
        return [Finding("No trial was stopped early.")]
    pairs = [
        (early, last_score(search, trial))
        for trial in candidates
        if trial.status == "complete" and (early := score_at(search, trial, epoch)) is not None
    ]
    if len(pairs) < FEWEST_TO_RANK:
        text = (
            f"Too few trials to say whether early stopping was safe: {len(pairs)} reached the full budget, and "
            f"{FEWEST_TO_RANK} are needed to compare their ranks after {epochs(epoch)} with the final ones."
        )
        return [Finding(text)]
    early_scores, final = zip(*pairs, strict=True)
    tau = float(stats.kendalltau(early_scores, final).statistic)
    findings = [
        Finding(
            f"Of the {len(pairs)} trials with the full budget, scores after {epochs(epoch)} rank like the final ones "
            f"with Kendall's tau {tau:.2f} (1: the same order, 0: no relation; only trials that were not stopped can "
            "be asked)."
        )
    ]
    differ = spread is not None and float(np.std(final, ddof=1)) > 2 * spread.deviation
    if differ and tau < UNRELATED:
        text = (
            f"Early scores do not rank like final ones (Kendall's tau {tau:.2f} of {len(pairs)} trials), so early "
            "stopping may have stopped good trials: raise search.early_stopping.grace_epochs or grace_steps, or set "
            "early_stopping: null."
        )
        findings.append(Finding(text, is_warning=True))
    return findings
