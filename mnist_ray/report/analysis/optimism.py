"""The best configurations on fresh seeds: the best of many trials looks better in the search than it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mnist_ray.config import JobSpec, Search
from mnist_ray.record.selection import confirmations_of, confirmed_score, last_score
from mnist_ray.record.state import Training
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.scores import cost


@dataclass(frozen=True)
class Optimism:
    """One configuration: its score in the search, and its scores on fresh seeds."""

    training_id: str
    search_score: float
    confirmed: list[float]  # by seed
    confirmed_mean: float | None  # None where a seed failed

    @property
    def shift(self) -> float | None:
        return None if self.confirmed_mean is None else self.confirmed_mean - self.search_score


def optimism(spec: JobSpec, candidates: Sequence[Training], confirmed: Sequence[Training]) -> list[Optimism]:
    """Return one entry for each candidate that was confirmed, in the candidates' order."""
    search = spec.search
    return [
        Optimism(
            trial.id,
            last_score(search, trial),
            [last_score(search, training) for training in again if training.status == "complete"],
            confirmed_score(spec, trial, confirmed),
        )
        for trial in candidates
        if (again := confirmations_of(trial.id, confirmed))
    ]


def describe_optimism(search: Search, found: Sequence[Optimism]) -> list[Finding]:
    """Say by how much fresh seeds scored worse, and whether they changed what was selected."""
    means = {each.training_id: each.confirmed_mean for each in found if each.confirmed_mean is not None}
    shifts = [cost(search, each.shift) for each in found if each.shift is not None]
    if not shifts:
        return [
            Finding(
                "The best trials were not confirmed on fresh seeds, so their scores are too good by an unknown amount "
                "(the best of many trials looks better than it is): set confirm.top_k and confirm.seeds."
            )
        ]
    shift = fmean(shifts)
    size = f"{abs(shift):.2g} {'worse' if shift > 0 else 'better'} in {search.objective} than in the search"
    meaning = "that is how optimistic the search's own scores were" if shift > 0 else "no optimism was seen"
    findings = [Finding(f"On fresh seeds the best {len(shifts)} configurations scored {size}, on average: {meaning}.")]
    first, best = found[0].training_id, min(means, key=lambda training_id: cost(search, means[training_id]))
    if best != first:
        findings.append(
            Finding(f"The confirmation changed the selection: {best} instead of the search's best, {first}.")
        )
    return findings
