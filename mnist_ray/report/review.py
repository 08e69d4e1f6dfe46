"""Everything that is said of a run, computed once, before anything is drawn or written."""

from dataclasses import dataclass

import pandas as pd

from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.errors import SpecError
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.selection import scored_models
from mnist_ray.record.tables import STAGES, history_table, results_table
from mnist_ray.report.analysis.importance import Importances, importances
from mnist_ray.report.analysis.predictions import Predictions, predictions
from mnist_ray.report.analysis.search_quality import SearchReview, review_search
from mnist_ray.report.analysis.verdict import Verdict, verdict
from mnist_ray.report.summary import summary_lines


@dataclass(frozen=True)
class Review:
    """A run as far as it is."""

    run: RunDir
    spec: JobSpec
    verdict: Verdict
    search: SearchReview | None  # None without trials
    importances: Importances | None  # None without a trial that ended
    table: pd.DataFrame
    history: pd.DataFrame
    choice: str | None  # the training whose model people take away
    choice_said: Predictions | None

    @classmethod
    def of(cls, run: RunDir) -> "Review":
        """Raises SpecError for a run that has not begun, CorruptFileError."""
        started = run.stage("started")
        if started is None:
            raise SpecError(
                f"{run.path} has not begun yet, so there is nothing to report: start it with 'mnist-ray run'"
            )
        spec = parse_spec(started["spec"], str(run.path))
        ended = ended_trials(run)
        # Of the first seed, whatever the test said of the others.
        choice = next((model.id for model in scored_models(run, "choice")), None)
        return cls(
            run,
            spec,
            verdict(run),
            review_search(run, spec),
            importances(spec.search, ended) if ended else None,
            results_table(run),
            history_table(run),
            choice,
            predictions(run, choice) if choice else None,
        )

    def summary(self) -> list[str]:
        """For a terminal."""
        return summary_lines(self.run, self.verdict, self.search)

    def trainings(self) -> list[Training]:
        return [each for stage in STAGES for each in self.run.trainings(stage)]


def ended_trials(run: RunDir) -> list[Training]:
    return [trial for trial in run.trainings("search") if trial.status is not None]
