"""The content of result.json, which docs/statistics.md describes key by key."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from mnist_ray.config import Objective
from mnist_ray.record.events import kind_of
from mnist_ray.record.judgement import Judgement, ensembles, judge_run
from mnist_ray.record.rundir import RunDir

SCHEMA_VERSION = 1  # a larger one where a key of before means something else or is gone

Scores = dict[str, float | int]  # test_loss, test_accuracy, test_correct, test_examples, and a second test's likewise


@dataclass(frozen=True)
class SelectedOutcome:
    """The selected configuration."""

    training: str | None  # the trial that it comes from; None for the baseline
    hyperparameters: dict[str, Any]
    score: float | None  # the search's


@dataclass(frozen=True)
class EnsembleOutcome:
    """The models of one side, which answer together by the mean of their probabilities."""

    side: str
    trainings: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Scores


@dataclass(frozen=True)
class StageOutcome:
    """A recorded step of the job."""

    stage: str
    at: str
    elapsed_s: float | None


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of a run, for programs."""

    schema_version: int
    name: str
    data: str
    objective: Objective
    trials: dict[str, int]  # how many, by status
    selected: SelectedOutcome | None
    tested: dict[str, Scores]  # by training
    ensembles: list[EnsembleOutcome]
    verdict: Judgement
    warnings: list[str] | None  # about the search; None until a report is made, which finds them
    versions: dict[str, str]  # of the latest session: mnist_ray, Python and the libraries
    test_opened_at: str | None
    num_events: int  # how much of the record this shows
    stages: list[StageOutcome]


def outcome_of(run: RunDir) -> RunOutcome:
    """Return a started run's outcome as far as the run is. Raises CorruptFileError."""
    state = run.state
    assert state.started is not None
    spec, selected = state.started.spec, state.selected
    statuses = Counter(trial.status or "running" for trial in state.trainings("search"))
    return RunOutcome(
        schema_version=SCHEMA_VERSION,
        name=spec.name,
        data=spec.data.name,
        objective=spec.search.objective,
        trials=dict(sorted(statuses.items())),
        selected=SelectedOutcome(selected.training, selected.hyperparameters.model_dump(), selected.score)
        if selected
        else None,
        tested={
            training_id: {
                name: value for test, scored in tests.items() for name, value in scored.score.columns(test).items()
            }
            for training_id, tests in (state.tested.scores if state.tested else {}).items()
        },
        ensembles=[
            EnsembleOutcome(each.side, each.training_ids, each.seeds, each.predictions.score.columns("test"))
            for each in ensembles(run)
        ],
        verdict=judge_run(run),
        warnings=None,
        versions=dict(state.started.versions),
        test_opened_at=state.test_opened.at if state.test_opened else None,
        num_events=state.num_events,
        stages=[
            StageOutcome(kind_of(type(event)), event.at, getattr(event, "elapsed_s", None))
            for event in state.stage_events
        ],
    )
