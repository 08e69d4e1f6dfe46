"""The stages of a run: data, search, final round, select, retrain, test. Each is kept on record and not repeated."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from mnist_ray import __version__, data
from mnist_ray.callbacks import CallbackList, StageName, TrainingInfo, TrainingOutcome
from mnist_ray.config import Hyperparameters, JobSpec, Retrain, Role, Stage
from mnist_ray.data import LabelledImages
from mnist_ray.errors import CorruptFileError, DataError, InterruptedRunError, SpecError, TrainingFailedError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.pipeline.backend import Backend, Connection, RetrainingFailedError
from mnist_ray.pipeline.early_stopping import SuccessiveHalving
from mnist_ray.pipeline.provenance import installed_versions, provenance
from mnist_ray.pipeline.search import PlannedFinal, SuggestedTrials, TrialController, training_task
from mnist_ray.pipeline.taken_baselines import TakenBaselines
from mnist_ray.pipeline.tasks import RetrainingEnd, TrainingImages
from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import (
    ClusterFacts,
    ConfigurationSelected,
    DataFacts,
    EpochReported,
    FinalEnded,
    FinalStarted,
    PlannedRetraining,
    RetrainingEnded,
    RetrainingFailed,
    RetrainingStarted,
    SearchEnded,
    SearchStarted,
    SessionStarted,
    TestOpened,
    TestScored,
    TrainingCreated,
    TrainingEnded,
)
from mnist_ray.record.selection import (
    RECIPE,
    Selection,
    final_trainings,
    finalist_trainings,
    ranked,
    seed_of_final,
    select,
)
from mnist_ray.record.state import RunState, Training
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import sha256

logger = logging.getLogger(__name__)

RESUME = "run the same command again to continue"


@dataclass
class Elapsed:
    """The wall time of a stage in this session; set when the stage ends."""

    seconds: float = 0.0


class LoadedData:
    """The training images of a spec, split into those that trials train on and those that judge trials.

    Raises DataError.
    """

    def __init__(
        self,
        spec: JobSpec,
        on_start: Callable[[int], object] = lambda _: None,
        on_read: Callable[[int], object] = lambda _: None,
    ) -> None:
        """on_start, on_read: called with the number of the user's own images, and with how many of them are read."""
        self.folder = data.data_dir_of(spec.data.dir)
        self.opened = data.open_data(
            spec.data.name,
            self.folder,
            spec.test.also,
            spec.data.transpose,
            spec.data.test_fraction,
            on_start=on_start,
            on_read=on_read,
        )
        self._examples = self.opened.training
        self._split = self.opened.split(spec.data.num_validation, spec.seed)
        self._statistics = data.pixel_statistics(self._examples.take(self._split.train).images)
        self.facts = DataFacts(
            training_sha256=data.content_sha256(self._examples),
            split_sha256=self._split.sha256,
            num_training=len(self._examples),
            num_validation=len(self._split.validation),
            classes=self.opened.classes,
            test_sha256=self.opened.test_sha256,
            files=sha256(self.opened.files) if self.opened.files else None,
        )

    def load_test(self) -> LabelledImages:
        """Read the test half. Raises DataError, also where own images are no longer those that were set apart."""
        examples = self.opened.load_test()
        if self.facts.test_sha256 not in (None, data.content_sha256(examples)):
            raise DataError(f"data.dir {self.folder}: its test images have changed since the run's data were read")
        return examples

    @property
    def num_train(self) -> int:
        """The examples that a trial trains on."""
        return len(self._split.train)

    @cached_property
    def split(self) -> TrainingImages:
        """The images of the search and the final round."""
        train, validation = (self._examples.take(part) for part in (self._split.train, self._split.validation))
        return TrainingImages(train, validation, self._statistics, self.opened.num_classes)

    @cached_property
    def whole(self) -> TrainingImages:
        """The images of the retraining, which learns from the validation split too."""
        return TrainingImages(self._examples, None, self._statistics, self.opened.num_classes)


class Stages:
    """The stages of one run, in one session of its owner."""

    def __init__(self, spec: JobSpec, writer: RunWriter, callbacks: CallbackList) -> None:
        """Load the data. Raises DataError, SpecError where the data are not those that the run began with.

        Raises SpecError too where the run that `retrain.baseline_from` names has another baseline.
        """
        self._spec = spec
        self._writer = writer
        self._run = writer.run
        self._callbacks = callbacks
        self._roles: dict[str, Role] = {}
        writer.subscribe(self._call_back)
        with self._timed("data") as elapsed:
            self._data = LoadedData(
                spec, lambda total: callbacks.on_stage_start("data", total, 0, "images"), callbacks.on_images_read
            )
        self._data_s = elapsed.seconds
        if warning := spec.oversized_batch(self._data.num_train):
            logger.warning("%s", warning)
        started = self._state.started
        if started and started.data != self._data.facts:
            raise SpecError(
                f"data.name {spec.data.name}: the data or the split differ from those that {self._run} began "
                f"with ({self._difference(started.data)}): give the run another name (--name), or undo the change"
            )
        self._taken_baselines = TakenBaselines(spec, self._data.facts)

    @property
    def _state(self) -> RunState:
        return self._run.state

    @contextmanager
    def _timed(self, stage: StageName) -> Iterator[Elapsed]:
        """Measure a stage's wall time and report its end to the callbacks."""
        elapsed = Elapsed()
        started = time.monotonic()
        yield elapsed
        elapsed.seconds = time.monotonic() - started
        self._callbacks.on_stage_end(stage, elapsed.seconds)

    def _difference(self, then: DataFacts) -> str:
        """Say in what the data differ from those that the run began with."""
        if then.files and self._data.opened.files:
            from mnist_ray.data.own_images.images import changed_files  # imports Pillow, which other data do without

            return changed_files(self._run.blob(then.files), self._data.opened.files)
        return f"{then} then, {self._data.facts} now"

    def _call_back(self, published: Numbered) -> None:
        """Report what is published about trainings to the callbacks."""
        event = published.event
        if not isinstance(event, EpochReported | TrainingEnded):
            return
        training = self._state.training(event.id)
        assert training is not None, event.id
        if isinstance(event, EpochReported):
            self._callbacks.on_epoch(self._info(training), event.metrics)
        else:
            self._callbacks.on_training_end(self._info(training), _outcome(training, event))

    def _begin_stage(self, stage: Stage, ids: Sequence[str], total: int, unit: str) -> None:
        """Report a stage's start to the callbacks, and which of its trainings had ended before."""
        trainings = [training for training in map(self._state.training, ids) if training is not None]
        ended = [(training, training.ended) for training in trainings if training.ended is not None]
        self._callbacks.on_stage_start(stage, total, len(ended), unit)
        for training, end in ended:
            self._callbacks.on_earlier_end(self._info(training), _outcome(training, end))

    def _info(self, training: Training) -> TrainingInfo:
        role = self._roles.get(training.id)
        return TrainingInfo(training.id, training.stage, training.config, role, self._label(training))

    def _label(self, training: Training) -> str:
        """Name a training for people."""
        spec, seed = self._spec, training.config.seed
        if training.stage == "final" and spec.final:
            seeds = [seed_of_final(spec.seed, number) for number in range(spec.final.seeds)]
            return f"{training.of}, seed {seeds.index(seed) + 1} of {len(seeds)}"
        if training.stage == "retrain" and spec.retrain and seed in spec.retrain.seeds:
            number = spec.retrain.seeds.index(seed) + 1
            return f"{self._roles.get(training.id)}, seed {number} of {len(spec.retrain.seeds)}"
        return training.id

    def record_start(self, backend: Backend, connection: Connection) -> None:
        """Record what this session runs with."""
        capacity = connection.capacity
        if files := self._data.opened.files:
            self._writer.put_blob(files, "files")
        self._writer.publish(
            SessionStarted(
                spec=self._spec,
                data=self._data.facts,
                versions={"mnist_ray": __version__, "python": platform.python_version()} | installed_versions(),
                cluster=ClusterFacts(backend.name, capacity.cpus, capacity.gpus, capacity.processors),
                provenance=provenance(with_gpus=capacity.gpus > 0),
                data_s=self._data_s,
            )
        )

    # --- search and selection

    def search(self, connection: Connection, num_concurrent: int) -> None:
        """Run the trials that are not on record yet. Raises InterruptedRunError."""
        spec, state = self._spec, self._state
        if not state.search_is_open(spec):
            return
        begun = [training.id for training in state.trainings("search")]
        self._begin_stage("search", begun, spec.search.num_trials, "trials")
        used_s = state.searched_s
        allowed_s = None if spec.max_hours is None else spec.max_hours * 3600
        left_s = None if allowed_s is None else max(allowed_s - used_s, 1.0)
        self._writer.publish(SearchStarted())
        with self._timed("search") as elapsed:
            trials = state.trainings("search")
            if state.num_ended("search") < spec.search.num_trials:
                suggested = SuggestedTrials(spec, trials)
                early_stopping = SuccessiveHalving(spec, self._data.num_train)
                controller = TrialController(spec, self._writer, suggested, early_stopping, num_concurrent, left_s)
                connection.run_trials(controller, self._data.split, spec.search)
            self._writer.flush()
        used_s += elapsed.seconds
        num_ended, num_begun = self._state.num_ended("search"), len(self._state.trainings("search"))
        out_of_time = allowed_s is not None and used_s >= allowed_s
        if num_ended < num_begun or (num_ended < spec.search.num_trials and not out_of_time):
            raise InterruptedRunError(f"interrupted with {num_ended} of {spec.search.num_trials} trials done: {RESUME}")
        self._writer.publish(
            SearchEnded(
                num_trials=spec.search.num_trials,
                out_of_time=num_ended < spec.search.num_trials,
                used_s=used_s,
                elapsed_s=elapsed.seconds,
            )
        )

    def final(self, connection: Connection, num_concurrent: int) -> None:
        """Train the search's best and the recipe at the full budget, on fresh seeds. Raises InterruptedRunError."""
        state = self._state
        trials = state.trainings("search")
        if state.selection_is_current or state.final_is_current or not ranked(self._spec.search, trials):
            return
        planned = final_trainings(self._spec, trials)
        if not planned:
            return
        ids = tuple(plan.id for plan in planned)
        self._begin_stage("final", ids, len(ids), "trainings")
        self._writer.publish(FinalStarted(trainings=ids))
        with self._timed("final") as elapsed:
            new = PlannedFinal([plan for plan in planned if state.training(plan.id) is None])
            model_of = self._final_model if self._spec.retrain is None else None
            controller = TrialController(self._spec, self._writer, new, None, num_concurrent, model_of=model_of)
            connection.run_trials(controller, self._data.split, self._spec.search)
            self._writer.flush()
        num_ended = sum(map(self._state.has_ended, ids))
        if num_ended < len(ids):
            raise InterruptedRunError(
                f"interrupted with {num_ended} of {len(ids)} trainings of the final round done: {RESUME}"
            )
        rests_on = state.number_of(SearchEnded)
        self._writer.publish(FinalEnded(trainings=ids, rests_on=rests_on, elapsed_s=elapsed.seconds))

    def _final_model(self, training_id: str) -> bytes:
        """Return the weights of a complete training, from its last checkpoint. Raises CorruptFileError, OSError."""
        training = self._state.training(training_id)
        assert training is not None, training_id
        from mnist_ray.training.checkpoint import Checkpoints  # torch takes 3 s to import

        folder = self._run.paths.checkpoints(training_id)
        saved = Checkpoints.of_owner(folder, self._writer.fencing_token, training.config).latest()
        if saved is None or saved.completed_epochs < training.config.num_epochs:
            raise CorruptFileError(f"{folder} holds no checkpoint of the last epoch: {RESUME}")
        return saved.shipped_model()

    def _check_the_recipe(self) -> None:
        """Raise TrainingFailedError where the recipe failed in the final round: nothing can be compared with it."""
        for training in self._state.trainings("final"):
            if training.of == RECIPE and training.status == "failed":
                raise TrainingFailedError(
                    f"the recipe failed in the final round, and nothing is selected without it: {training.reason} "
                    f"(log: {self._run.paths.training_log(training.id)}): solve the cause "
                    "and give the run another name (--name), or set final: null there"
                )

    def select(self, with_search: bool) -> None:
        """Select a configuration; without a search the recipe with the parts of `training`.

        Raises TrainingFailedError.
        """
        state = self._state
        if state.selection_is_current or (not with_search and state.selected):
            return
        selection = None
        if with_search:
            self._check_the_recipe()
            selection = select(self._spec, state.trainings("search"), state.trainings("final"))
            if selection is None:
                raise TrainingFailedError(self._why_nothing_was_selected())
        self._record_selection(selection)
        if selection and not selection.is_complete:
            logger.info(
                "no trial reached the full budget of %d epochs; %s is the best of those with the most epochs (%d)",
                *(self._spec.search.num_epochs, selection.training.id, selection.training.epochs_done),
            )

    def _record_selection(self, selection: Selection | None) -> None:
        trial = selection.training if selection else None
        hyperparameters = trial.config.hyperparameters if trial else self._spec.starting_point
        self._writer.publish(
            ConfigurationSelected(
                training=trial.id if trial else None,
                hyperparameters=hyperparameters,
                score=selection.score if selection else None,
                final=selection.final if selection else None,
                is_complete=selection is None or selection.is_complete,
                retrainings=planned_retrainings(self._spec, trial, hyperparameters),
                rests_on=self._state.number_of(SearchEnded),
            )
        )

    def _why_nothing_was_selected(self) -> str:
        failed = [trial for trial in self._state.trainings("search") if trial.status == "failed"]
        if not failed:
            return f"no trial completed an epoch within max_hours {self._spec.max_hours}: raise it"
        return (
            f"all {len(failed)} trials that ended failed, the first because: {failed[0].reason} "
            f"(log: {self._run.paths.training_log(failed[0].id)})"
        )

    # --- retraining and test

    @property
    def _planned(self) -> tuple[PlannedRetraining, ...]:
        selected = self._state.selected
        assert selected is not None
        return selected.retrainings

    def retrain(self, connection: Connection) -> None:
        """Train the selected configuration and the baseline on every seed. Raises TrainingFailedError."""
        state, settings = self._state, self._spec.retrain
        if settings is None or state.retraining_is_current:
            return
        self._roles = {plan.id: plan.role for plan in self._planned}
        still_open = [plan for plan in self._planned if not state.has_ended(plan.id)]
        total = sum(plan.config.num_epochs for plan in still_open)
        self._callbacks.on_stage_start("retrain", total, 0, "epochs")
        with self._timed("retrain") as elapsed:
            still_open = [plan for plan in still_open if not self._taken_baselines.record(self._writer, plan)]
            for plan in still_open:
                if state.training(plan.id) is None:
                    self._writer.record(TrainingCreated(id=plan.id, stage="retrain", config=plan.config))
            self._writer.flush()
            if still_open:
                num_concurrent = connection.num_concurrent_retrainings(settings, len(still_open))
                self._writer.publish(RetrainingStarted(concurrent=num_concurrent))
                self._run_retrainings(connection, still_open, settings, num_concurrent)
            self._writer.flush()
        rests_on = self._state.number_of(ConfigurationSelected)
        self._writer.publish(RetrainingEnded(rests_on=rests_on, elapsed_s=elapsed.seconds))

    def _run_retrainings(
        self, connection: Connection, plans: list[PlannedRetraining], settings: Retrain, num_concurrent: int
    ) -> None:
        tasks = [training_task(plan.id, plan.config, self._writer) for plan in plans]
        recorder = RetrainingRecorder(self._writer)
        try:
            connection.retrain(tasks, self._data.whole, settings, num_concurrent, self._spec.max_failures, recorder)
        except RetrainingFailedError as error:
            self._writer.publish(RetrainingFailed(error=str(error)))
            reason = str(error).strip().splitlines()[-1]
            raise TrainingFailedError(
                f"the retraining failed: {reason} (log: {self._run.paths.retraining_log}): solve the cause, "
                "then run the same command again to continue"
            ) from error

    def test(self) -> None:
        """Open the test split, once, and score each retrained model on it. Raises TrainingFailedError."""
        state = self._state
        if state.tested:
            return
        retrained = [state.training(plan.id) for plan in self._planned]
        complete = tuple(training.id for training in retrained if training and training.status == "complete")
        self._check_selected_was_trained(complete)
        self._callbacks.on_stage_start("test", len(complete), 0, "models")
        from mnist_ray.pipeline.final_test import score_models  # torch takes 3 s to import

        also = self._spec.test.also
        if state.test_opened is None:
            self._writer.publish(TestOpened(data=self._spec.data.name, also=also, models=complete))
        with self._timed("test") as elapsed:
            tests = {"test": self._data.load_test()}
            tests |= {name: data.load_second_test(name, self._data.folder) for name in also}
            scores, examples = score_models(self._writer, complete, tests)
        self._writer.publish(TestScored(scores=scores, examples=examples, elapsed_s=elapsed.seconds))

    def _check_selected_was_trained(self, complete: tuple[str, ...]) -> None:
        selected = [plan.id for plan in self._planned if plan.role.startswith("selected")]
        if not set(selected) & set(complete):
            training = self._state.training(selected[0])
            reason = training.reason if training and training.ended else "it did not end"
            raise TrainingFailedError(
                f"the retraining of the selected configuration failed: {reason} "
                f"(log: {self._run.paths.training_log(selected[0])})"
            )


def planned_retrainings(
    spec: JobSpec, trial: Training | None, selected: Hyperparameters
) -> tuple[PlannedRetraining, ...]:
    """Return the selected configuration on every seed, then the baseline on every seed unless they are the same.

    Without a retraining these are trainings of the final round, which have ended.
    """
    if spec.retrain is None:
        return _tested_finalists(spec, trial, selected)
    name = f"retrain-{trial.id}" if trial else "train-recipe"
    plans: list[tuple[str, Role, Hyperparameters]] = [(name, "selected", selected)]
    if trial and selected == spec.baseline:
        plans = [("retrain-recipe", "selected = baseline", selected)]
    elif trial and spec.retrain.baseline:
        plans.append(("retrain-recipe", "baseline", spec.baseline))
    return tuple(
        PlannedRetraining(f"{name}-seed-{seed}", role, spec.training_config(values, spec.retrain.num_epochs, seed))
        for name, role, values in plans
        for seed in spec.retrain.seeds
    )


def _tested_finalists(
    spec: JobSpec, trial: Training | None, selected: Hyperparameters
) -> tuple[PlannedRetraining, ...]:
    assert trial is not None, "without a search there is no final round"
    sides: list[tuple[str, Role, Hyperparameters]] = [
        (trial.id, "selected", selected),
        (RECIPE, "baseline", spec.baseline),
    ]
    if selected == spec.baseline:
        sides = [(RECIPE, "selected = baseline", selected)]
    return tuple(
        PlannedRetraining(training.id, role, training.config)
        for name, role, values in sides
        for training in finalist_trainings(spec, name, values)
    )


def _outcome(training: Training, end: TrainingEnded) -> TrainingOutcome:
    last = training.history[-1] if training.history else None
    return TrainingOutcome(end.status, end.reason, training.epochs_done, last)


class RetrainingRecorder:
    """Records what a backend reports of the retrainings (RetrainingReports in backend.py)."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        trainings = writer.run.state.trainings("retrain")
        self._histories = {training.id: list(training.history) for training in trainings}

    def on_epoch(self, training_id: str, metrics: EpochMetrics) -> None:
        """Record an epoch, unless it is on record already because it was read from a checkpoint."""
        history = self._histories[training_id]
        if metrics in history:
            return
        self._histories[training_id] = [each for each in history if each.epoch < metrics.epoch] + [metrics]
        self._writer.record(EpochReported(id=training_id, metrics=metrics))

    def on_end(self, end: RetrainingEnd) -> None:
        """Record the end of a training, with its weights as a blob."""
        execution = end.execution
        self._writer.record(
            TrainingEnded(
                id=end.id,
                status="failed" if end.failure else "complete",
                reason=end.failure.reason if end.failure else None,
                trace=end.failure.trace if end.failure else None,
                workers=execution.workers,
                threads=execution.threads,
                device=execution.device,
                num_failures=execution.num_failures,
                steps=execution.steps,
                model=None if end.model is None else self._writer.put_blob(end.model, "model"),
            )
        )

    def poll(self) -> None:
        """Pass on what is published."""
        self._writer.poll()
