"""The stages of a run: search, confirm, choose, retrain, test. Each is kept on record and not repeated."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mnist_ray import __version__
from mnist_ray.config import Hyperparameters, JobSpec, TrainingConfig
from mnist_ray.errors import InterruptedRunError, SpecError, TrainingFailedError
from mnist_ray.pipeline.provenance import provenance
from mnist_ray.ray_backend.cluster import Capacity, installed_versions
from mnist_ray.ray_backend.train.messages import EpochDone, Message, Retraining
from mnist_ray.record.rundir import RunDir, Training
from mnist_ray.record.selection import Choice, choose, confirmations
from mnist_ray.record.tables import ROLE_OF_CHOICE_AND_RECIPE

if TYPE_CHECKING:
    from mnist_ray.data import LabelledImages, PixelStatistics, Split
    from mnist_ray.ray_backend.shared_data import SharedData


class Listener:
    """Who wants to see a run as it goes; what a subclass leaves out is not shown."""

    def note(self, text: str) -> None:
        """Something that a person should know."""

    def stage_began(self, stage: str, total: int, done: int, unit: str) -> None:
        """`done` of `total` were done in earlier sessions."""

    def stage_ended(self, stage: str, elapsed_s: float) -> None:
        """After a stage that did something."""

    def trial_epoch(self, training_id: str, row: dict[str, Any]) -> None:
        """row: as in the history table."""

    def trial_ended(self, training: Training) -> None:
        """With its outcome on record."""

    def retraining_epoch(self, training_id: str, role: str, row: dict[str, Any], num_epochs: int) -> None:
        """role: as in the results table."""


def _versions() -> dict[str, str]:
    return {"mnist_ray": __version__, "python": platform.python_version()} | installed_versions()


def search_is_open(run: RunDir, spec: JobSpec) -> bool:
    if run.stage("unsealed"):
        return False  # a choice made after that proves nothing
    searched = run.stage("searched")
    if searched is None or searched["num_trials"] < spec.search.num_trials:
        return True
    used, allowed = searched["used_hours"], spec.max_hours
    return bool(searched["out_of_time"]) and (allowed is None or allowed > used)


def choice_is_current(run: RunDir) -> bool:
    chosen, searched = run.stage("chosen"), run.stage("searched")
    return chosen is not None and (searched is None or chosen["at"] >= searched["at"])


def confirmation_is_current(run: RunDir) -> bool:
    confirmed, searched = run.stage("confirmed"), run.stage("searched")
    return confirmed is not None and (searched is None or confirmed["at"] >= searched["at"])


class Stages:
    """The stages of one run, with what they hand to one another."""

    def __init__(self, spec: JobSpec, run: RunDir, listener: Listener) -> None:
        self._spec = spec
        self._run = run
        self._listener = listener

    @contextmanager
    def timed(self, stage: str) -> Iterator[dict[str, Any]]:
        """Measure a stage's wall time; `facts["elapsed_s"]` is set when it ends."""
        facts: dict[str, Any] = {}
        started = time.monotonic()
        yield facts
        facts["elapsed_s"] = time.monotonic() - started
        self._listener.stage_ended(stage, facts["elapsed_s"])

    # --- data

    def load_data(self) -> None:
        from mnist_ray import data

        folder = data.data_dir_of(self._spec.data.dir)
        self._data_dir = folder
        data.fetch(self._spec.data.name, folder, self._spec.test.also)
        self._examples: LabelledImages = data.load_training(self._spec.data.name, folder)
        self._split: Split = data.stratified_split(
            self._examples.labels, self._spec.data.num_validation, self._spec.seed
        )
        train_images = self._examples.take(self._split.train).images
        self._statistics: PixelStatistics = data.pixel_statistics(train_images)
        self._data_facts = {
            "training_sha256": data.content_sha256(self._examples),
            "split_sha256": self._split.sha256,
            "num_training": len(self._examples),
        }
        self._check_same_data()

    def _check_same_data(self) -> None:
        started = self._run.stage("started")
        if started and started["data"] != self._data_facts:
            raise SpecError(
                f"data.name {self._spec.data.name}: the data or the split are not those that {self._run.path} began "
                f"with ({started['data']} then, {self._data_facts} now): give the run another name (--name)"
            )

    def record_start(self, capacity: Capacity, data_s: float) -> None:
        """A session begins: what it runs with goes on record."""
        self._run.record_stage(
            "started",
            spec=self._spec.model_dump(mode="json"),
            data=self._data_facts,
            versions=_versions(),
            cluster={"cpus": capacity.cpus, "gpus": capacity.gpus, "processors": list(capacity.processors)},
            provenance=provenance(),
            data_s=data_s,
        )

    # --- search and choice

    def search(self, num_concurrent: int) -> None:
        if not search_is_open(self._run, self._spec):
            return
        from mnist_ray.ray_backend.tune import search as tuning

        trials = self._run.trainings("search")
        num_ended = sum(trial.status is not None for trial in trials)
        self._listener.stage_began("search", self._spec.search.num_trials, num_ended, "trials")
        if not self._spec.recipe_is_in_space:
            self._listener.note("the recipe lies outside search.space, so it is no trial of the search")
        used_s = self._run.searched_s()
        allowed_s = None if self._spec.max_hours is None else self._spec.max_hours * 3600
        left_s = None if allowed_s is None else max(allowed_s - used_s, 1.0)
        self._run.record_stage("searching")
        with self.timed("search") as facts:
            tuning.search(self._spec, self._run, self._shared_split, num_concurrent, left_s, self._listener)
        used_s += facts["elapsed_s"]
        self._end_search(used_s, out_of_time=allowed_s is not None and used_s >= allowed_s, **facts)

    def _end_search(self, used_s: float, out_of_time: bool, **facts: float) -> None:
        trials = self._run.trainings("search")
        num_ended = sum(trial.status is not None for trial in trials)
        if num_ended < len(trials) or (num_ended < self._spec.search.num_trials and not out_of_time):
            raise InterruptedRunError(
                f"interrupted with {num_ended} of {self._spec.search.num_trials} trials done: "
                "run the same command again to go on"
            )
        self._run.record_stage(
            "searched",
            num_trials=self._spec.search.num_trials,
            out_of_time=num_ended < self._spec.search.num_trials,
            used_hours=used_s / 3600,
            **facts,
        )

    def confirm(self, num_concurrent: int) -> None:
        """Train the best configurations again on fresh seeds, before one is chosen."""
        if choice_is_current(self._run) or confirmation_is_current(self._run):
            return
        planned = confirmations(self._spec, self._run.trainings("search"))
        if not planned:
            return
        from mnist_ray.ray_backend.tune import search as tuning

        self._listener.stage_began("confirm", len(planned), self._num_confirmed(), "trainings")
        self._run.record_stage("confirming", trainings=[plan.id for plan in planned])
        with self.timed("confirm") as facts:
            tuning.confirm(self._spec, self._run, self._shared_split, planned, num_concurrent, self._listener)
        if any(not self._has_ended(plan.id) for plan in planned):
            raise InterruptedRunError(
                f"interrupted with {self._num_confirmed()} of {len(planned)} confirmations done: "
                "run the same command again to go on"
            )
        self._run.record_stage("confirmed", trainings=[plan.id for plan in planned], **facts)

    def _num_confirmed(self) -> int:
        return sum(training.status is not None for training in self._run.trainings("confirm"))

    def choose(self, with_search: bool) -> None:
        if with_search and not choice_is_current(self._run):
            best = choose(self._spec, self._run.trainings("search"), self._run.trainings("confirm"))
            if best is None:
                raise TrainingFailedError(self._why_no_choice())
            self._record_choice(best)
            if not best.is_complete:
                self._listener.note(
                    f"no trial reached the full budget of {self._spec.search.num_epochs} epochs; "
                    f"{best.training.id} is the best of those that got furthest ({best.training.epochs_done} epochs)"
                )
        elif not with_search and self._run.stage("chosen") is None:
            self._record_choice(None)

    def _record_choice(self, choice: Choice | None) -> None:
        """None: the recipe, without a search."""
        trial = choice.training if choice else None
        if trial is None:
            hyperparameters = self._spec.recipe
        else:
            hyperparameters = Hyperparameters(**{key: trial.config[key] for key in Hyperparameters.model_fields})
        self._run.record_stage(
            "chosen",
            training=trial and trial.id,
            hyperparameters=hyperparameters.model_dump(),
            score=choice and choice.score,
            confirmed_score=choice and choice.confirmed_score,
            is_complete=choice is None or choice.is_complete,
            retrainings=self._plan(trial, hyperparameters),
        )

    def _plan(self, trial: Training | None, choice: Hyperparameters) -> list[dict[str, Any]]:
        """The retrainings: the choice on every seed, then the recipe on every seed unless it is the choice."""
        name = f"retrain-{trial.id}" if trial else "train-recipe"
        plans = [(name, "choice", choice)]
        if trial and choice == self._spec.recipe:
            plans = [("retrain-recipe", ROLE_OF_CHOICE_AND_RECIPE, choice)]
        elif trial and self._spec.retrain.baseline:
            plans.append(("retrain-recipe", "baseline", self._spec.recipe))
        return [
            {
                "id": f"{name}-seed-{seed}",
                "role": role,
                "config": self._spec.training(values, self._spec.retrain.num_epochs, seed).model_dump(),
            }
            for name, role, values in plans
            for seed in self._spec.retrain.seeds
        ]

    def _why_no_choice(self) -> str:
        trials = self._run.trainings("search")
        failed = [trial for trial in trials if trial.status == "failed"]
        if not failed:
            return f"no trial got through an epoch within max_hours {self._spec.max_hours}: raise it"
        first = failed[0].ended or {}
        return (
            f"all {len(failed)} trials that ended failed, the first because: {first['reason']} "
            f"(log: {self._run.training_log(failed[0].id)})"
        )

    # --- retraining and test

    def _retrainings(self) -> list[dict[str, Any]]:
        chosen = self._run.stage("chosen")
        assert chosen is not None
        planned: list[dict[str, Any]] = chosen["retrainings"]
        return planned

    def retrain(self) -> None:
        chosen, retrained = self._run.stage("chosen"), self._run.stage("retrained")
        if chosen and retrained and retrained["at"] >= chosen["at"]:
            return
        open_plans = [plan for plan in self._retrainings() if not self._has_ended(plan["id"])]
        total = sum(plan["config"]["num_epochs"] for plan in open_plans)
        self._listener.stage_began("retrain", total, 0, "epochs")
        with self.timed("retrain") as facts:
            if open_plans:
                self._retrain(open_plans)
        self._run.record_stage("retrained", **facts)

    def _retrain(self, plans: list[dict[str, Any]]) -> None:
        from mnist_ray.ray_backend.train import trainer as distributed

        for plan in plans:
            if self._run.training(plan["id"]) is None:
                self._run.record_asked(plan["id"], "retrain", plan["config"])
        try:
            distributed.retrain(
                [self._retraining(plan) for plan in plans],
                self._shared_whole(),
                self._spec.retrain,
                self._spec.max_failures,
                self._run.ray_state,
                self._receive,
                self._listener.note,
            )
        except distributed.GroupFailedError as error:
            self._run.record_stage("retrain-failed", error=str(error))
            reason = str(error).strip().splitlines()[-1]
            raise TrainingFailedError(
                f"the retraining failed: {reason} (log: {self._run.retraining_log}): run the same command again to go "
                "on once the cause is mended"
            ) from error

    def _has_ended(self, training_id: str) -> bool:
        training = self._run.training(training_id)
        return training is not None and training.status is not None

    def _retraining(self, plan: dict[str, Any]) -> Retraining:
        return Retraining(
            plan["id"],
            TrainingConfig(**plan["config"]),
            self._run.checkpoints(plan["id"]),
            self._run.generation,
            self._run.first_event,
        )

    def _receive(self, message: Message) -> None:
        if isinstance(message, EpochDone):
            self._run.record_epoch(message.id, message.row)
            plan = next(plan for plan in self._retrainings() if plan["id"] == message.id)
            self._listener.retraining_epoch(message.id, plan["role"], message.row, plan["config"]["num_epochs"])
            return
        model = None if message.model is None else self._run.put_blob(message.model, "model")
        self._run.record_ended(
            message.id,
            "complete" if message.failure is None else "failed",
            message.failure,
            workers=message.workers,
            threads=self._spec.retrain.cpus_per_worker,
            device=message.device,
            num_failures=message.num_failures,
            trace=message.trace,
            model=model,
        )
        self._run.remove_checkpoints(message.id)

    def test(self) -> None:
        """Unseal the test split, once, and score each retrained model on it."""
        if self._run.stage("tested"):
            return
        from mnist_ray import data
        from mnist_ray.pipeline.final_test import TestRecorder

        complete = [plan["id"] for plan in self._retrainings() if self._is_complete(plan["id"])]
        self._check_choice_was_trained(complete)
        self._listener.stage_began("test", len(complete), 0, "models")
        if self._run.stage("unsealed") is None:
            also = list(self._spec.test.also)
            self._run.record_stage("unsealed", data=self._spec.data.name, also=also, models=complete)
        with self.timed("test") as facts:
            tested = TestRecorder(self._run, complete)
            scores = tested.scores("test", data.load_test(self._spec.data.name, self._data_dir))
            for name in self._spec.test.also:
                also_scores = tested.scores(name, data.load_second_test(name, self._data_dir))
                scores = {training_id: score | also_scores[training_id] for training_id, score in scores.items()}
        self._run.record_stage("tested", scores=scores, **tested.evidence, **facts)

    def _is_complete(self, training_id: str) -> bool:
        training = self._run.training(training_id)
        return training is not None and training.status == "complete"

    def _check_choice_was_trained(self, complete: list[str]) -> None:
        choice = [plan["id"] for plan in self._retrainings() if plan["role"].startswith("choice")]
        if not set(choice) & set(complete):
            training = self._run.training(choice[0])
            ended = (training and training.ended) or {"reason": "it did not end"}
            raise TrainingFailedError(
                f"the retraining of the choice failed: {ended['reason']} (log: {self._run.training_log(choice[0])})"
            )

    @cached_property
    def _shared_split(self) -> "SharedData":
        """For trials and confirmations: handed to the workers once a session."""
        from mnist_ray.ray_backend.shared_data import SharedData

        train, validation = (self._examples.take(part) for part in (self._split.train, self._split.validation))
        return SharedData.put(train, validation, self._statistics)

    def _shared_whole(self) -> "SharedData":
        """For the retraining: everything is for training."""
        from mnist_ray.ray_backend.shared_data import SharedData

        return SharedData.put(self._examples, None, self._statistics)
