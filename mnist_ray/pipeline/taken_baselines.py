"""Baselines that another run has retrained, recorded here instead of being trained again."""

from dataclasses import replace

from mnist_ray.config import JobSpec, TrainingConfig
from mnist_ray.errors import SpecError
from mnist_ray.record.events import (
    DataFacts,
    EpochReported,
    PlannedRetraining,
    TrainingCreated,
    now,
)
from mnist_ray.record.rundir import RunDir, find_run
from mnist_ray.record.state import Training
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import storage_path


class TakenBaselines:
    """The retrained baselines of the run that `retrain.baseline_from` names."""

    def __init__(self, spec: JobSpec, facts: DataFacts) -> None:
        """facts: of this run's data. Raises SpecError that names what the other run lacks or has otherwise."""
        self._trainings: dict[TrainingConfig, Training] = {}
        retrain = spec.retrain
        if retrain is None or retrain.baseline_from is None:
            return
        self._run = find_run(retrain.baseline_from, storage_path(spec.storage))
        where = f"retrain.baseline_from {retrain.baseline_from}"
        remedy = "use the same values in both specs, or leave out retrain.baseline_from"
        started = self._run.state.started
        if started is None or started.data != facts:
            there = started.data if started else "none yet"
            raise SpecError(f"{where}: its data or split differ ({there} there, {facts} here): {remedy}")
        for seed in retrain.seeds:
            config = spec.training_config(spec.baseline, retrain.num_epochs, seed)
            retrained = (each for each in self._run.state.trainings("retrain") if each.ended)
            found = next((each for each in retrained if each.status == "complete" and each.config == config), None)
            if found is None:
                raise SpecError(f"{where}: {_difference(self._run, config)}: {remedy}")
            self._trainings[config] = found

    def record(self, writer: RunWriter, plan: PlannedRetraining) -> bool:
        """Record a planned retraining as the other run has it; return False where it has none."""
        taken = self._trainings.get(plan.config)
        if taken is None or taken.ended is None or taken.ended.model is None:
            return False
        known = writer.run.state.training(plan.id)
        if known is None:
            writer.record(TrainingCreated(id=plan.id, stage="retrain", config=plan.config))
        for metrics in taken.history[known.epochs_done if known else 0 :]:
            writer.record(EpochReported(id=plan.id, metrics=metrics))
        model = writer.put_blob(self._run.blob(taken.ended.model), "model")
        source = f"{self._run.path.name}/{taken.id}"
        writer.record(replace(taken.ended, id=plan.id, at=now(), model=model, taken_from=source))
        return True


def _difference(run: RunDir, config: TrainingConfig) -> str:
    """Say what keeps a run's baseline from being the one that is wanted."""
    wanted = config.model_dump()
    planned = run.state.selected.retrainings if run.state.selected else ()
    baselines = [plan.config.model_dump() for plan in planned if plan.role.endswith("baseline")]
    same_seed = next((each for each in baselines if each["seed"] == config.seed), None)
    if same_seed is None:
        return f"it retrained no baseline with seed {config.seed}"
    differing = [
        f"{key} {same_seed[key]} there, {value} here" for key, value in wanted.items() if same_seed[key] != value
    ]
    return "; ".join(differing) or f"its baseline with seed {config.seed} is not complete"
