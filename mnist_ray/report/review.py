"""Everything that a report says of a run, computed once, before anything is drawn or written."""

from dataclasses import dataclass

import pandas as pd

from mnist_ray.config import JobSpec
from mnist_ray.errors import SpecError
from mnist_ray.record.events import SessionStarted
from mnist_ray.record.judgement import Ensemble, ensembles
from mnist_ray.record.models import RetrainedModel, retrained_models
from mnist_ray.record.predictions import Predictions, predictions
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState, Training
from mnist_ray.record.tables import STAGES, history_table, results_table
from mnist_ray.record.timing import TrialTime, num_retrained_at_once, training_times
from mnist_ray.report.analysis.costs import Cost, costs
from mnist_ray.report.analysis.importance import Importances, importances
from mnist_ray.report.analysis.roles import DividedImages, RoleScores, divided_images, role_scores
from mnist_ray.report.analysis.scores import rung_epoch
from mnist_ray.report.analysis.search_review import SearchReview, review_search
from mnist_ray.report.analysis.verdict import Verdict, verdict
from mnist_ray.report.summary import summary_lines


@dataclass(frozen=True)
class Review:
    """A run as far as it is, with everything that was computed from its record."""

    run: RunDir
    state: RunState
    started: SessionStarted
    verdict: Verdict
    search: SearchReview | None  # None without trials
    importances: Importances | None  # None without a trial that ended
    table: pd.DataFrame  # as results_table has it
    history: pd.DataFrame  # as history_table has it
    model: RetrainedModel | None  # the model that people take away; None before it is tested
    ensembles: list[Ensemble]  # of the sides with two or more tested models
    predictions: Predictions | None  # that model's, on the test split
    roles: list[RoleScores]
    divided: DividedImages | None  # None where only one role was tested
    costs: list[Cost]

    @classmethod
    def of(cls, run: RunDir) -> "Review":
        """Compute a run's review. Raises SpecError for a run that has not begun, CorruptFileError."""
        state = run.state
        if state.started is None:
            raise SpecError(
                f"{run.path} has not begun yet, so there is nothing to report: start it with 'mnist-ray run'"
            )
        ended = [trial for trial in state.trainings("search") if trial.ended]
        model = model_to_take_away(state)
        return cls(
            run,
            state,
            state.started,
            verdict(run),
            review_search(state),
            importances(state.started.spec, ended, rung_epoch(state)) if ended else None,
            results_table(state),
            history_table(state),
            model,
            ensembles(run),
            predictions(run, model.training.id) if model else None,
            role_scores(state),
            divided_images(run),
            costs(state),
        )

    @property
    def spec(self) -> JobSpec:
        return self.started.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.started.class_names

    def summary(self) -> list[str]:
        """Return the lines for a terminal."""
        return summary_lines(self.state, self.verdict, self.search, self.ensembles)

    def times(self) -> list[TrialTime]:
        """Return the parts of each training's time."""
        sessions = [start.at for start in self.state.starts]
        return training_times(self.trainings(), num_retrained_at_once(self.state), sessions)

    def trainings(self) -> list[Training]:
        return [training for stage in STAGES for training in self.state.trainings(stage)]


def model_to_take_away(state: RunState) -> RetrainedModel | None:
    """Return the selected configuration's model of the first tested seed, whatever the test gave for the others."""
    models = retrained_models(state)
    return next((model for model in models if model.role.startswith("selected") and "test" in model.scores), None)
