"""The speed and the score of each batch size of a search, and those that are too large."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mnist_ray.config import Search
from mnist_ray.record.events import SessionStarted
from mnist_ray.record.selection import last_score
from mnist_ray.record.state import Training
from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.scores import cost


@dataclass(frozen=True)
class BatchSize:
    """One batch size of a search."""

    batch_size: int
    images_per_s: float  # in training, the median over epochs
    best: float | None  # the best final score; None where no trial is complete


def warn_of_batches(started: SessionStarted) -> list[Finding]:
    """Return a warning where the search tried batches of more images than there are."""
    warning = started.spec.oversized_batch(started.data.num_training - started.num_validation)
    return [Finding(f"{warning}.", is_warning=True)] if warning else []


def by_batch_size(search: Search, trials: Sequence[Training]) -> list[BatchSize]:
    """Return one entry for each batch size with a timed epoch, smallest first.

    The first epoch of a trial warms up, and counts only where it is the trial's only one.
    """
    found = []
    for size in sorted({trial.config.batch_size for trial in trials}):
        timed, scores = [], []
        for trial in (each for each in trials if each.config.batch_size == size):
            speeds = [
                metrics.train.num_examples / metrics.elapsed_s
                for metrics in trial.history[1:] or trial.history
                if metrics.elapsed_s > 0
            ]
            timed += speeds
            if speeds and trial.status == "complete":
                scores.append(last_score(search, trial))
        if timed:
            best = min(scores, key=lambda score: cost(search, score), default=None)
            found.append(BatchSize(size, median(timed), best))
    return found
