"""A storage's runs as a list: how far each is, and how its models came out."""

import json
import statistics
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mnist_ray.config import DecidedBy
from mnist_ray.record.events import FinalStarted
from mnist_ray.record.lease import is_at_work
from mnist_ray.record.models import Side, scored_models
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState
from mnist_ray.record.timing import stage_times
from mnist_ray.storage.files import read

RunStatus = Literal["running", "finished", "stopped"]


@dataclass(frozen=True)
class Progress:
    """The part of a stage that is done."""

    stage: Literal["data", "search", "final", "select", "retrain", "test"]
    done: int
    total: int
    unit: Literal["trials", "trainings", "epochs", "models", ""]


@dataclass(frozen=True)
class ListedRun:
    """One run of a list; None where there is nothing yet."""

    run: str
    began_at: str | None
    data: str | None
    status: RunStatus
    running_since: str | None  # of the session at work
    progress: Progress | None  # None for a finished run
    elapsed_s: float  # in stages that ended, and in the search so far
    test_accuracy: float | None  # of the selected configuration, the mean over its seeds
    test_loss: float | None
    baseline_test_accuracy: float | None
    baseline_test_loss: float | None
    decided_by: DecidedBy | None
    difference: float | None  # of the quantity that decides: the selected configuration's less the baseline's
    difference_low: float | None  # the ends of its 95 % interval
    difference_high: float | None
    verdict: str | None


def listed_run(run: RunDir) -> ListedRun:
    """Describe a run as far as it is. Raises CorruptFileError, OSError."""
    state = run.state
    is_finished, is_running = state.tested is not None, is_at_work(run)
    selected, baseline = _Means.of(state, "selected"), _Means.of(state, "baseline")
    judged = _judged(run)
    return ListedRun(
        run=run.path.name,
        began_at=state.sessions[0].owner.at if state.sessions else None,
        data=state.started.spec.data.name if state.started else None,
        status="running" if is_running else "finished" if is_finished else "stopped",
        running_since=state.session.owner.at if state.session and is_running else None,
        progress=None if is_finished else progress_of(state),
        elapsed_s=sum(stage.wall_s for stage in stage_times(state)) + (0.0 if state.search_ended else state.searched_s),
        test_accuracy=selected.accuracy,
        test_loss=selected.loss,
        baseline_test_accuracy=baseline.accuracy,
        baseline_test_loss=baseline.loss,
        decided_by=state.started.spec.decided_by if state.started else None,
        difference=judged.difference,
        difference_low=judged.low,
        difference_high=judged.high,
        verdict=judged.verdict,
    )


def progress_of(state: RunState) -> Progress:
    """Return how far a run is that is not tested yet."""
    if state.started is None:
        return Progress("data", 0, 0, "")
    spec = state.started.spec
    if state.search_started and state.search_is_open(spec):
        return Progress("search", state.num_ended("search"), spec.search.num_trials, "trials")
    if state.selected is None:
        if spec.final is None or state.final_is_current:
            return Progress("select", 0, 0, "")
        final = state.latest(FinalStarted)
        ids = final.event.trainings if final else ()
        return Progress("final", sum(map(state.has_ended, ids)), len(ids), "trainings")
    planned = state.selected.retrainings
    if spec.retrain and not state.retraining_is_current:
        trainings = [training for plan in planned if (training := state.training(plan.id))]
        done = sum(training.epochs_done for training in trainings)
        return Progress("retrain", done, sum(plan.config.num_epochs for plan in planned), "epochs")
    return Progress("test", 0, len(planned), "models")


class _Means(NamedTuple):
    """The means over one side's tested models."""

    accuracy: float | None
    loss: float | None

    @classmethod
    def of(cls, state: RunState, side: Side) -> "_Means":
        scores = [model.score for model in scored_models(state, side)]
        if not scores:
            return cls(None, None)
        accuracies, losses = ([getattr(score, name) for score in scores] for name in ("accuracy", "loss"))
        return cls(statistics.fmean(accuracies), statistics.fmean(losses))


class _Judged(NamedTuple):
    verdict: str | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def _judged(run: RunDir) -> _Judged:
    """Return the verdict and the difference of the quantity that decides."""
    if run.state.tested is None or run.state.started is None:
        return _Judged(None)
    decided_by = run.state.started.spec.decided_by
    try:
        outcome = json.loads(read(run.paths.outcome))  # holds what took a second to compute
        if outcome["num_events"] == run.state.num_events:
            verdict, quantity = outcome["verdict"], outcome["verdict"]["quantities"].get(decided_by)
            if quantity is None:
                return _Judged(str(verdict["kind"]))
            found = quantity["difference"]
            ends = (float(found["interval"][end]) for end in ("low", "high"))
            return _Judged(str(verdict["kind"]), float(found["value"]), *ends)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # it is missing, not current or of another release
    from mnist_ray.record.judgement import judge_run  # imports scipy

    judgement = judge_run(run)
    if decided_by not in judgement.quantities:
        return _Judged(judgement.kind)
    difference = judgement.quantities[decided_by].difference
    return _Judged(judgement.kind, difference.value, difference.interval.low, difference.interval.high)
