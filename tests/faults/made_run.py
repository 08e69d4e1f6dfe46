"""A finished run's folder, made in a second by the local backend's own parts: what tests read, damage and tamper with.

All calls that write a record for the tests of faults stand here, and so does all that these tests know of how a
record looks on the disk.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_ray import __version__, data
from mnist_ray.config import JobSpec, Stage, TrainingConfig, parse_spec
from mnist_ray.pipeline.final_test import score_models
from mnist_ray.record import events
from mnist_ray.record.exports import write_exports
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import read_sealed_json, seal, write_sealed_json
from mnist_ray.training.checkpoint import Checkpoints, fit_resumably, model_to_bytes
from mnist_ray.training.examples import Examples, TrainingData

NAME = "made"
TRIAL, OPEN_TRIAL, RETRAINING = "trial-0000", "trial-0001", "retrain-trial-0000-seed-0"
NUM_EPOCHS = 2


def made_spec(storage: Path) -> JobSpec:
    return parse_spec(
        {
            "name": NAME,
            "storage": str(storage),
            "data": {"name": "digits", "num_validation": 180},
            "recipe": {"batch_size": 64},
            "search": {"num_trials": 2, "num_epochs": NUM_EPOCHS, "early_stopping": None, "max_concurrent_trials": 1},
            "final": None,
            "retrain": {"num_epochs": NUM_EPOCHS, "baseline": False},
        }
    )


def make_open_run(storage: Path) -> tuple[JobSpec, RunDir]:
    """Leave a run as a search that was killed: one trial complete, one with the checkpoint of its first epoch."""
    return _make(storage, _search_half)


def make_finished_run(storage: Path) -> tuple[JobSpec, RunDir]:
    def work(writer: RunWriter, spec: JobSpec) -> None:
        _search_half(writer, spec)
        _finish(writer, spec)

    return _make(storage, work)


def _make(storage: Path, work: Callable[[RunWriter, JobSpec], None]) -> tuple[JobSpec, RunDir]:
    """Let `work` record as an owner whose process is gone now."""
    spec = made_spec(storage)
    here = this_process()
    gone = events.ProcessIdentity(here.pid, "0", here.boot, here.processes)
    taken = events.RunTaken(format=events.RECORD_FORMAT, version=__version__, host="here", process=gone)
    writer = RunWriter(RunDir(storage / NAME), taken)
    work(writer, spec)
    writer.close()
    write_exports(storage / NAME)
    return spec, RunDir(storage / NAME)


def _search_half(writer: RunWriter, spec: JobSpec) -> None:
    writer.publish(_started(spec))
    writer.publish(events.SearchStarted())
    _train(writer, TRIAL, "search", _config(spec, 1), NUM_EPOCHS, number=0)
    _end(writer, TRIAL)
    _train(writer, OPEN_TRIAL, "search", _config(spec, 2), 1, number=1)


def _finish(writer: RunWriter, spec: JobSpec) -> None:
    _train(writer, OPEN_TRIAL, "search", _config(spec, 2), NUM_EPOCHS)
    _end(writer, OPEN_TRIAL)
    searched = writer.publish(events.SearchEnded(num_trials=2, out_of_time=False, used_s=36.0, elapsed_s=36.0))
    selected = writer.publish(
        events.ConfigurationSelected(
            training=TRIAL,
            hyperparameters=spec.baseline,
            score=0.5,
            final=None,
            is_complete=True,
            retrainings=(events.PlannedRetraining(RETRAINING, "selected", _config(spec, 0)),),
            rests_on=searched,
        )
    )
    model = _train(writer, RETRAINING, "retrain", _config(spec, 0), NUM_EPOCHS)
    _end(writer, RETRAINING, model=writer.put_blob(model, "model"))
    writer.publish(events.RetrainingEnded(rests_on=selected, elapsed_s=1.0))
    writer.publish(events.TestOpened(data="digits", also=(), models=(RETRAINING,)))
    scores, examples = score_models(writer, [RETRAINING], {"test": data.load_test("digits", Path())})
    writer.publish(events.TestScored(scores=scores, examples=examples, elapsed_s=0.1))


def _started(spec: JobSpec) -> events.SessionStarted:
    examples = data.load_training("digits", Path())
    assert spec.data.num_validation is not None
    split = data.stratified_split(examples.labels, spec.data.num_validation, spec.seed)
    return events.SessionStarted(
        spec=spec,
        data=events.DataFacts(data.content_sha256(examples), split.sha256, len(examples)),
        versions={},
        cluster=events.ClusterFacts("local", 2, 0, ("made",)),
        provenance=events.Provenance("c" * 64, None, None, "made"),
        data_s=0.1,
    )


def _train(
    writer: RunWriter,
    training_id: str,
    stage: Stage,
    config: TrainingConfig,
    num_epochs: int,
    number: int | None = None,
) -> bytes:
    """Train up to `num_epochs` on a few digits, with checkpoints, on record as a job does it; return the model."""
    known = writer.run.state.training(training_id)
    if known is None:
        writer.publish(events.TrainingCreated(id=training_id, stage=stage, config=config, number=number))
    epochs_done = known.epochs_done if known else 0
    few = data.load_training("digits", Path()).take(np.arange(128))
    examples = Examples.of(few, torch.device("cpu"))
    validation = examples if stage == "search" else None
    training_data = TrainingData(examples, validation, data.pixel_statistics(few.images))
    for state in fit_resumably(config, training_data, checkpoints_of(writer.run, training_id, config)):
        if state.completed_epochs > epochs_done:
            writer.publish(events.EpochReported(id=training_id, metrics=state.history[-1]))
        if state.completed_epochs == num_epochs:
            break
    return model_to_bytes(state.shipped_model)


def _end(writer: RunWriter, training_id: str, model: str | None = None) -> None:
    writer.publish(events.TrainingEnded(id=training_id, status="complete", model=model))


def _config(spec: JobSpec, seed: int) -> TrainingConfig:
    return spec.training_config(spec.baseline, NUM_EPOCHS, seed)


# --- how a run looks on the disk


def checkpoints_of(run: RunDir, training_id: str, config: TrainingConfig) -> Checkpoints:
    """Return the checkpoints of the run's latest owner."""
    return Checkpoints(run.paths.checkpoints(training_id) / f"{run.state.fencing_token:06d}", config, every_s=0.0)


def record_files(run: RunDir) -> list[Path]:
    """Return the files of the log and the blobs, of which everything else can be made."""
    return sorted(path for path in run.paths.record.rglob("*") if path.is_file())


def tamper(run: RunDir, change: Callable[[Any], Any], kinds: tuple[str, ...] = ()) -> None:
    """Let `change` make another value of every value in the events (of these kinds), and seal the log again."""
    previous = ""
    for path in sorted(run.paths.record.glob("*.json")):
        body = read_sealed_json(path)
        changed = [
            _changed(event, change) if not kinds or event["kind"] in kinds else event for event in body["events"]
        ]
        body |= {"events": changed, "previous": previous}
        write_sealed_json(path, body)
        previous = seal(body)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change from the leaves up; a change of a dictionary's key counts too."""
    if isinstance(value, dict):
        return change({change(key): _changed(inner, change) for key, inner in value.items()})
    if isinstance(value, list):
        return change([_changed(inner, change) for inner in value])
    return change(value)


# What a killed run may leave beside what a finished one has, or somebody may put there, below the run's folder.
LEFTOVERS = [
    *("ray/search-0/tuner.pkl", "ray/search-0/trainable.pkl", "ray/search-0/experiment_state-2026.json"),
    *("ray/search-0/searcher-state-2026.pkl", "ray/search-0/search_gen_state-2026.json"),
    *("ray/search-0/basic-variant-state-2026.json", "ray/search-0/run_trial_0/params.pkl"),
    *("ray/retrain-0/trainer.pkl", "ray/retrain-0/checkpoint_manager_snapshot.json"),
    *("ray/retrain-0/checkpoint_0/dict_checkpoint.pkl", "ray/retrain-0/checkpoint_0/.metadata.pkl"),
    *(f"checkpoints/{OPEN_TRIAL}/000001/epoch-0009/{name}" for name in ("state.safetensors", "checkpoint.json")),
    *(f"checkpoints/{OPEN_TRIAL}/{name}" for name in ("model.pt", "optimizer.pkl", "random_state.npy")),
    *("models/model.pt", "models/trial-0000.safetensors", "models/trial-0000.test_logits.npy"),
    *("record/000099.pkl", "record/blobs/model.pt", "leases/000001.json"),
    *("spec.pkl", "study.pkl", "results.pkl", "history.pkl", "conftest.py", "sitecustomize.py"),
]
