"""The review of a search: its cost, its findings, its blind spots, and the remedies."""

from dataclasses import dataclass, field

from mnist_ray.config import Search
from mnist_ray.record.selection import ranked
from mnist_ray.record.state import RunState
from mnist_ray.report.analysis.batch_sizes import BatchSize, by_batch_size, warn_of_batches
from mnist_ray.report.analysis.carry_over import describe_carry_over
from mnist_ray.report.analysis.early_stopping import judge_early_stopping
from mnist_ray.report.analysis.edges import warn_of_edges
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.noise import SeedSpread, compare_with_seeds, seed_spread
from mnist_ray.report.analysis.optimism import Optimism, describe_optimism, optimism
from mnist_ray.report.analysis.random_search import (
    Expectation,
    best_so_far,
    compare_with_random,
    random_expectation,
)
from mnist_ray.report.analysis.scores import rung_epoch
from mnist_ray.report.analysis.spending import Spending, describe_spending, spending


@dataclass(frozen=True)
class SearchReview:
    """An account of a search: facts for tables and figures, and findings for people."""

    search: Search
    epoch: int  # which every trial reaches unless it fails
    spending: Spending
    findings: list[Finding]
    optimism: list[Optimism] = field(default_factory=list)
    seed_spread: SeedSpread | None = None  # of the objective after the full budget
    expectation: Expectation | None = None
    best_so_far: list[tuple[int, float]] = field(default_factory=list)  # costs at `epoch` after so many trials
    batch_sizes: list[BatchSize] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """The findings that are no warnings, the key ones first."""
        return [*self.key_sentences, *self.other_sentences]

    @property
    def key_sentences(self) -> list[str]:
        return [finding.text for finding in self.findings if finding.is_key and not finding.is_warning]

    @property
    def other_sentences(self) -> list[str]:
        return [finding.text for finding in self.findings if not finding.is_key and not finding.is_warning]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_warning]


def review_search(state: RunState) -> SearchReview | None:
    """Review the search of a run that has started; None without trials."""
    assert state.started is not None
    spec, search = state.started.spec, state.started.spec.search
    trials, finals = state.trainings("search"), state.trainings("final")
    if not trials:
        return None
    spent = spending(trials)
    candidates, epoch = ranked(search, trials), rung_epoch(state)
    if not candidates:
        nothing = Finding("No trial got through an epoch, so nothing can be said of the search.", is_warning=True)
        return SearchReview(search, epoch, spent, [*describe_spending(spent), nothing])
    shifts = optimism(spec, candidates, finals)
    spread = seed_spread(search, finals, search.num_epochs)
    return SearchReview(
        search,
        epoch,
        spent,
        [
            *describe_spending(spent),
            compare_with_random(spec, trials, epoch),
            *compare_with_seeds(search, trials, finals, epoch),
            *describe_optimism(spec, shifts, state.selected),
            *warn_of_edges(spec, candidates, state.selected),
            *warn_of_batches(state.started),
            *judge_early_stopping(search, candidates, spread, epoch),
            *describe_carry_over(state, spec),
        ],
        shifts,
        spread,
        random_expectation(spec, trials, epoch),
        best_so_far(search, trials, epoch),
        by_batch_size(search, trials),
    )
