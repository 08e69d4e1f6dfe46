"""The verdict on a run: whether the selected configuration is better than the baseline, as far as the evidence goes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from mnist_ray.config import DecidedBy
from mnist_ray.record.judgement import JudgedQuantity, Judgement, Kind, judge_run
from mnist_ray.record.rundir import RunDir
from mnist_ray.report.formatting import heading, interval_of, loss_difference, points
from mnist_ray.statistics import FEWEST_SEEDS, Difference

EQUIVALENCE_KEY: dict[DecidedBy, str] = {
    "test_loss": "report.equivalence_loss",
    "test_accuracy": "report.equivalence_points",
}
FORMAT: dict[DecidedBy, Callable[[float], str]] = {"test_loss": loss_difference, "test_accuracy": points}


@dataclass(frozen=True)
class Verdict:
    """A judgement, with the sentences that a user reads: the conclusion, then the evidence."""

    judgement: Judgement
    sentences: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """All of them in one text."""
        return " ".join(self.sentences)

    @property
    def kind(self) -> Kind:
        return self.judgement.kind


def verdict(run: RunDir) -> Verdict:
    """Judge a run as far as it is. Raises CorruptFileError."""
    judgement = judge_run(run)
    if judgement.kind == "not tested yet":
        return Verdict(judgement, (f"No verdict yet: {judgement.reason}.",))
    if judgement.kind == "not compared":
        return Verdict(judgement, (f"No verdict: {judgement.reason}, so nothing says whether tuning helped.",))
    if judgement.kind == "same recipe":
        return Verdict(judgement, (f"Same recipe: {judgement.reason}, so the baseline is what was selected.",))
    return Verdict(judgement, in_words(judgement, "the selected configuration", "the baseline"))


def in_words(judgement: Judgement, first: str, second: str) -> tuple[str, ...]:
    """Return a judgement that compared something: the conclusion, both quantities, and what could have been seen."""
    name = judgement.decided_by
    decisive = judgement.quantities[name]
    ((other_name, other),) = (each for each in judgement.quantities.items() if each[0] != name)
    conclusion = {
        "better": f"{first} is better than {second} in {heading(name)}",
        "worse": f"{first} is worse than {second} in {heading(name)}",
        "equivalent": f"{first} and {second} are equivalent in {heading(name)}",
        "undecided": f"it is undecided whether {first} is better or worse than {second} in {heading(name)}",
    }[decisive.outcome]
    sentences = [
        f"{conclusion[0].upper()}{conclusion[1:]} ({evidence(name, decisive.difference)})",
        f"{heading(other_name).capitalize()}: {evidence(other_name, other.difference)}; taken alone: {other.outcome}",
        *_remarks(name, decisive),
        _detectable(judgement),
    ]
    return tuple(f"{sentence}." for sentence in sentences)


def evidence(name: DecidedBy, found: Difference) -> str:
    """Return the size of a difference with its interval."""
    p_value = "" if found.p_value is None else f", sign flips over images p = {found.p_value:.2g}"
    return f"{FORMAT[name](found.value)}, 95 % interval {interval_of(found.interval, FORMAT[name])}{p_value}"


def seeds_in_words(found: Difference) -> str:
    """Return the numbers of seeds and images behind a difference."""
    first, second = found.num_seeds
    seeds = f"{first} seed{'s' if first > 1 else ''} each" if first == second else f"{first} and {second} seeds"
    return f"{seeds}, {found.num_images:,} test images"


def _remarks(name: DecidedBy, judged: JudgedQuantity) -> list[str]:
    """Say what limits a conclusion."""
    found, kind = judged.difference, judged.outcome
    bound = FORMAT[name](judged.bound).removeprefix("+")
    remarks = []
    if kind == "equivalent":
        remarks.append(f"All of that interval is within ±{bound} ({EQUIVALENCE_KEY[name]})")
    if kind in ("better", "worse") and found.interval.is_within(judged.bound):
        remarks.append(f"The difference is certain but small: within ±{bound} ({EQUIVALENCE_KEY[name]})")
    if min(found.num_seeds) < FEWEST_SEEDS:
        remarks.append(
            f"This speaks of these networks alone: fewer than {FEWEST_SEEDS} seeds say nothing certain about "
            "configurations"
        )
    return remarks


def _detectable(judgement: Judgement) -> str:
    """Say which true difference seeds and images like these would show."""
    loss, accuracy = (
        FORMAT[name](judgement.quantities[name].difference.smallest_detectable).removeprefix("+")
        for name in get_args(DecidedBy)
    )
    return (
        f"{seeds_in_words(judgement.quantities[judgement.decided_by].difference)}: these numbers would show a true "
        f"difference of {loss} in loss, or of {accuracy} in accuracy, four times out of five"
    )
