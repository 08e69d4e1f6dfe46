"""Runs in MLflow: a parent for the run, and below it a child for each training."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from mnist_ray.config import flat_spec
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState, Training
from mnist_ray.record.tables import STAGES
from mnist_ray.trackers.addresses import local_folder
from mnist_ray.trackers.follower import End, parameters, scalars

# MLflow's own are two minutes and seven times.
HTTP = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
MOST_METRICS, MOST_PARAMS, MOST_LETTERS = 1000, 100, 5000  # of one request, of a tag

# Tags, by which a later session finds what was logged.
RUN, TRAINING, STATUS = "mnist_ray.run", "mnist_ray.training", "mnist_ray.status"

STATUSES = {"complete": "FINISHED", "pruned": "KILLED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass
class Child:
    """The run of a training in MLflow."""

    run_id: str
    last_epoch: int = 0  # logged
    is_running: bool = True
    has_ended: bool = False
    has_tests: bool = False


class MlflowTracker:
    """The experiment that is named after the run, or as $MLFLOW_EXPERIMENT_NAME says."""

    def __init__(self, run: RunDir, address: str) -> None:
        """Find what was logged of this run, or begin with the parent. Raises MlflowException."""
        for name, value in HTTP.items():
            os.environ.setdefault(name, value)
        folder = local_folder(address)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=address)
        state, self._children = run.state, dict[str, Child]()
        began = state.sessions[0].owner
        self._identity = f"{run.path.name} of {began.host}, {began.at}"
        assert state.started is not None
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or state.started.spec.name
        artifacts = f"{folder}/artifacts" if folder else None
        experiment = self._client.get_experiment_by_name(name)
        self._experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(name, artifacts)
        )
        self._parent_id = self._find_what_was_logged() or self._create_parent(run, state)

    # --- what is there

    def _find_what_was_logged(self) -> str | None:
        """Keep the children of this run, and return the parent's id; None where there is none."""
        parent_id, token = None, None
        while True:
            found = self._client.search_runs(
                [self._experiment_id], f"tags.`{RUN}` = '{self._identity}'", max_results=1000, page_token=token
            )
            for run in found:
                if training_id := run.data.tags.get(TRAINING):
                    self._children[training_id] = self._child(run)
                else:
                    parent_id = run.info.run_id
                    self._has_tests = "test_loss" in run.data.metrics
            token = found.token
            if not token:
                break
        if parent_id:
            self._client.update_run(parent_id, status="RUNNING")
        return parent_id

    def _child(self, run: Run) -> Child:
        is_running = run.info.status == "RUNNING"
        has_ended = STATUS in run.data.tags and not is_running  # the tag is set first
        history = [] if has_ended else self._client.get_metric_history(run.info.run_id, "train_loss")
        return Child(
            run.info.run_id,
            max((metric.step for metric in history), default=0),
            is_running,
            has_ended,
            "test_loss" in run.data.metrics,
        )

    def _create_parent(self, run: RunDir, state: RunState) -> str:
        started = state.started
        assert started is not None
        provenance = started.provenance
        tags = {
            RUN: self._identity,
            "mnist_ray.folder": str(run),
            "mnist_ray.version": started.versions["mnist_ray"],
            "mnist_ray.data": started.data.training_sha256,
            "mlflow.source.name": "mnist_ray",
            **({"mlflow.source.git.commit": provenance.git_commit} if provenance.git_commit else {}),
        }
        at = _milliseconds(state.sessions[0].owner.at)
        parent = self._client.create_run(self._experiment_id, at, tags, run.path.name)
        self._log(parent.info.run_id, params=flat_spec(started.spec))
        self._has_tests = False
        return str(parent.info.run_id)

    # --- what is new

    def update(self, state: RunState, end: End | None) -> None:
        """Log new trainings, epochs, ends of trainings, and the test's scores."""
        for stage in STAGES:
            for training in state.trainings(stage):
                child = self._children.get(training.id) or self._create(training)
                if not child.has_ended:
                    self._follow(child, training)
        if state.tested and not self._has_tests:
            self._log_tests(state)
        if end is not None:
            self._end(state, end)

    def _create(self, training: Training) -> Child:
        tags = {RUN: self._identity, TRAINING: training.id, "mlflow.parentRunId": self._parent_id}
        at = _milliseconds(training.created_at)
        run = self._client.create_run(self._experiment_id, at, tags, training.id)
        child = self._children[training.id] = Child(run.info.run_id)
        self._log(child.run_id, params=parameters(training))
        return child

    def _follow(self, child: Child, training: Training) -> None:
        if not child.is_running:  # the session in which it began was stopped
            self._client.update_run(child.run_id, status="RUNNING")
            child.is_running = True
        new = [
            Metric(name, value, _milliseconds(at), metrics.epoch)
            for metrics, at in zip(training.history, training.reported_at, strict=True)
            if metrics.epoch > child.last_epoch
            for name, value in scalars(metrics).items()
        ]
        end = training.ended
        tags = {STATUS: f"{end.status}: {end.reason}" if end.reason else end.status} if end else {}
        self._log(child.run_id, new, tags=tags)
        child.last_epoch = max(child.last_epoch, training.epochs_done)  # fewer where it began again from a checkpoint
        if end:
            self._client.set_terminated(child.run_id, STATUSES[end.status], _milliseconds(end.at))
            child.has_ended = True

    def _log_tests(self, state: RunState) -> None:
        """Log the scores of each tested model, and the mean of each configuration's as the parent's."""
        assert state.tested is not None and state.selected is not None
        at = _milliseconds(state.tested.at)
        scores: dict[str, dict[str, list[float]]] = {}  # by role, then by metric
        roles = {plan.id: plan.role for plan in state.selected.retrainings}
        for training_id, tests in state.tested.scores.items():
            child, training = self._children[training_id], state.training(training_id)
            assert training is not None
            of_role = scores.setdefault("baseline_" if roles.get(training_id) == "baseline" else "", {})
            values: dict[str, float] = {}
            for test, scored in tests.items():
                values |= {f"{test}_loss": scored.score.loss, f"{test}_accuracy": scored.score.accuracy}
            for name, value in values.items():
                of_role.setdefault(name, []).append(value)
            if not child.has_tests:
                self._log(
                    child.run_id, [Metric(name, value, at, training.epochs_done) for name, value in values.items()]
                )
                child.has_tests = True
        means = {f"{role}{name}": fmean(each) for role, of_role in scores.items() for name, each in of_role.items()}
        self._log(self._parent_id, [Metric(name, value, at, 0) for name, value in means.items()])
        self._has_tests = True

    def _end(self, state: RunState, end: End) -> None:
        """Give the parent the status of the session, and open children that of one that is to be resumed."""
        at = _milliseconds(state.stage_events[-1].at)
        for child in self._children.values():
            if not child.has_ended:
                self._client.set_terminated(child.run_id, STATUSES["stopped"], at)
        self._client.set_terminated(self._parent_id, STATUSES[end], at)

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send what there is, in requests of a size that MLflow takes; the tags come last."""
        named = [Param(name, str(value)) for name, value in (params or {}).items()]
        marks = [RunTag(name, value[:MOST_LETTERS]) for name, value in (tags or {}).items()]
        for first in range(0, len(named), MOST_PARAMS):
            self._client.log_batch(run_id, params=named[first : first + MOST_PARAMS])
        for first in range(0, len(metrics), MOST_METRICS):
            is_last = first + MOST_METRICS >= len(metrics)
            self._client.log_batch(run_id, metrics[first : first + MOST_METRICS], tags=marks if is_last else ())
        if marks and not metrics:
            self._client.log_batch(run_id, tags=marks)


def _milliseconds(at: str) -> int:
    """Return a time of the record in milliseconds since 1970."""
    return round(datetime.fromisoformat(at).timestamp() * 1000)
