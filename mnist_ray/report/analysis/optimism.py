"""The best configurations on fresh seeds: the best of many trials looks better in the search than it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mnist_ray.config import JobSpec
from mnist_ray.record.events import ConfigurationSelected, FinalResult
from mnist_ray.record.selection import RECIPE, last_score, winner
from mnist_ray.record.state import Training
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.scores import cost


@dataclass(frozen=True)
class Optimism:
    """One configuration: its score in the search, and its scores on fresh seeds."""

    training_id: str
    search_score: float
    fresh: list[float]  # by seed, in the final round
    fresh_mean: float | None  # None where a seed failed

    @property
    def shift(self) -> float | None:
        return None if self.fresh_mean is None else self.fresh_mean - self.search_score


def optimism(spec: JobSpec, candidates: Sequence[Training], finals: Sequence[Training]) -> list[Optimism]:
    """Return one entry for each candidate that was in the final round, in the candidates' order."""
    search, found = spec.search, []
    for trial in candidates:
        again = [training for training in finals if training.of == trial.id]
        scores = [last_score(search, training) for training in again if training.status == "complete"]
        if again:
            mean = fmean(scores) if len(scores) == len(again) else None
            found.append(Optimism(trial.id, last_score(search, trial), scores, mean))
    return found


def describe_optimism(
    spec: JobSpec, found: Sequence[Optimism], selected: ConfigurationSelected | None
) -> list[Finding]:
    """Say by how much fresh seeds scored worse, and whether the final round changed what was selected."""
    search = spec.search
    shifts = [cost(search, each.shift) for each in found if each.shift is not None]
    if not shifts:
        return [
            Finding(
                "The best trials did not run on fresh seeds, so their scores are too good by an unknown amount (the "
                "best of many trials looks better than it is): set final.top_k and final.seeds.",
                is_key=True,
            )
        ]
    findings = []
    if spec.final_epochs == search.num_epochs:
        shift = fmean(shifts)
        size = f"{abs(shift):.2g} {'worse' if shift > 0 else 'better'} in {search.objective} than in the search"
        meaning = "that is how optimistic the search's own scores were" if shift > 0 else "no optimism was seen"
        text = f"On fresh seeds the best {len(shifts)} configurations scored {size}, on average: {meaning}."
        findings.append(Finding(text))
    if selected and selected.final and selected.training != found[0].training_id:
        instead = f"instead of the search's best, {found[0].training_id}"
        findings.append(Finding(f"The final round changed the selection: {selected.training} {instead}."))
    if selected and selected.final:
        findings.append(_against_the_recipe(spec, selected.final))
    return findings


def _against_the_recipe(spec: JobSpec, result: FinalResult) -> Finding:
    """Say how far ahead of the recipe the best finalist was, and what it needed."""
    search = spec.search
    recipe = result.mean_of(RECIPE)
    means = {each.of: each.mean for each in result.finalists if each.of != RECIPE and each.mean is not None}
    if recipe is None or not means:
        return Finding("Every finalist but the recipe failed on a seed, so the recipe stays.", is_key=True)
    best = min(means, key=lambda name: cost(search, means[name]))
    lead = cost(search, recipe) - cost(search, means[best])
    relation = "better" if lead > 0 else "worse"
    outcome = "so it replaces the recipe" if winner(spec, result) == best else "so the recipe stays"
    return Finding(
        f"In the final round the best finalist, {best}, was {abs(lead):.2g} {relation} in {search.objective} than the "
        f"recipe. It needed to be better by more than {result.margin:.2g}, {outcome}.",
        is_key=True,
    )
