"""The cost of a search's trials, by how they ended."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mnist_ray.record.state import Training
from mnist_ray.report.analysis.findings import Finding

FAILED_SHARE = 0.2  # of the trials, from which on failures are worth a warning


@dataclass(frozen=True)
class Spending:
    """The number of trials and their seconds of training, by status; a trial that has not ended is "running"."""

    counts: dict[str, int]
    seconds: dict[str, float]

    @property
    def num_trials(self) -> int:
        return sum(self.counts.values())


def spending(trials: Sequence[Training]) -> Spending:
    """Count the trials and sum their seconds."""
    counts: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for trial in trials:
        status = trial.status or "running"
        counts[status] += 1
        seconds[status] = seconds.get(status, 0.0) + trial.elapsed_s
    return Spending(dict(sorted(counts.items())), seconds)


def describe_spending(spent: Spending) -> list[Finding]:
    """Say how many trials ended in which way; warn where many failed."""
    total_s = sum(spent.seconds.values()) or 1.0
    parts = ", ".join(
        f"{count} {status} ({spent.seconds[status]:.0f} s of training, {100 * spent.seconds[status] / total_s:.0f} %)"
        for status, count in spent.counts.items()
    )
    findings = [Finding(f"{spent.num_trials} trials: {parts}.")]
    num_failed = spent.counts.get("failed", 0)
    if num_failed >= max(2, FAILED_SHARE * spent.num_trials):
        text = f"{num_failed} of {spent.num_trials} trials failed: look at their reasons in the table below."
        findings.append(Finding(text, is_warning=True))
    return findings
