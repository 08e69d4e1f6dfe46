"""A finished run's folder, made in a second without Ray: what tests read, damage and tamper with.

All calls that write a record stand here, and so does all that tests know of how a record looks on the disk.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_ray import __version__, data
from mnist_ray.config import JobSpec, TrainingConfig, parse_spec
from mnist_ray.pipeline.final_test import TestRecorder
from mnist_ray.record.exports import write_views
from mnist_ray.record.process import this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import read_sealed_json, seal, write_sealed_json
from mnist_ray.training.checkpoint import Checkpoints, fit_resumably, model_to_bytes
from mnist_ray.training.loop import Examples, TrainingData

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
            "confirm": None,
            "retrain": {"num_epochs": NUM_EPOCHS, "baseline": False},
        }
    )


def make_open_run(storage: Path) -> tuple[JobSpec, RunDir]:
    """As a search that was killed leaves it: one trial complete, one with the checkpoint of its first epoch."""
    spec = made_spec(storage)
    run = RunDir(storage / NAME)
    run.take(
        {"host": "here", **this_process(), "pid_started": "0", "version": __version__}
    )  # by a process that is gone
    _start(run, spec)
    run.record_stage("searching")
    _train(run, TRIAL, "search", _config(spec, 1), NUM_EPOCHS, number=0)
    _end(run, TRIAL)
    _train(run, OPEN_TRIAL, "search", _config(spec, 2), 1, number=1)
    write_views(run)
    return spec, run


def make_finished_run(storage: Path) -> tuple[JobSpec, RunDir]:
    spec, run = make_open_run(storage)
    _train(run, OPEN_TRIAL, "search", _config(spec, 2), NUM_EPOCHS)
    _end(run, OPEN_TRIAL)
    run.record_stage("searched", num_trials=2, out_of_time=False, used_hours=0.01, elapsed_s=36.0)
    _choose(run, spec)
    model = _train(run, RETRAINING, "retrain", _config(spec, 0), NUM_EPOCHS)
    _end(run, RETRAINING, model=run.put_blob(model, "model"))
    run.record_stage("retrained", elapsed_s=1.0)
    _test(run)
    write_views(run)
    return spec, run


def _start(run: RunDir, spec: JobSpec) -> None:
    examples = data.load_training("digits", Path())
    split = data.stratified_split(examples.labels, spec.data.num_validation, spec.seed)
    facts = {
        "training_sha256": data.content_sha256(examples),
        "split_sha256": split.sha256,
        "num_training": len(examples),
    }
    run.record_stage(
        "started",
        spec=spec.model_dump(mode="json"),
        data=facts,
        versions={},
        cluster={"cpus": 2, "gpus": 0, "processors": ["made"]},
    )


def _train(run: RunDir, training_id: str, stage: str, config: TrainingConfig, num_epochs: int, **known: Any) -> bytes:
    """Train up to `num_epochs` on a few digits, with checkpoints, on record as a job does it; returns the model."""
    if run.training(training_id) is None:
        run.record_asked(training_id, stage, config.model_dump(), **known)
    few = data.load_training("digits", Path()).take(np.arange(128))
    examples = Examples.of(few, torch.device("cpu"))
    validation = examples if stage == "search" else None
    training_data = TrainingData(examples, validation, data.pixel_statistics(few.images))
    for state in fit_resumably(config, training_data, checkpoints_of(run, training_id, config)):
        run.record_epoch(training_id, state.history[-1])
        if state.completed_epochs == num_epochs:
            break
    return model_to_bytes(state.model)


def _end(run: RunDir, training_id: str, model: str | None = None) -> None:
    facts = {"workers": 1, "threads": 1, "device": "cpu", "num_failures": 0, "trace": None, "model": model}
    run.record_ended(training_id, "complete", None, **facts)


def _config(spec: JobSpec, seed: int) -> TrainingConfig:
    return spec.training(spec.recipe, NUM_EPOCHS, seed)


def _choose(run: RunDir, spec: JobSpec) -> None:
    plan = {"id": RETRAINING, "role": "choice", "config": _config(spec, 0).model_dump()}
    values = spec.recipe.model_dump()
    run.record_stage("chosen", training=TRIAL, hyperparameters=values, score=0.5, is_complete=True, retrainings=[plan])


def _test(run: RunDir) -> None:
    run.record_stage("unsealed", data="digits", also=[], models=[RETRAINING])
    tested = TestRecorder(run, [RETRAINING])
    scores = tested.scores("test", data.load_test("digits", Path()))
    run.record_stage("tested", scores=scores, **tested.evidence, elapsed_s=0.1)


# --- how it looks on the disk


def checkpoints_of(run: RunDir, training_id: str, config: TrainingConfig) -> Checkpoints:
    return Checkpoints(run.checkpoints(training_id) / f"{run.generation:06d}", config, every_s=0.0)


def record_files(run: RunDir) -> list[Path]:
    """Events and large things, of which everything else can be made."""
    return sorted(path for path in (run.path / "record").rglob("*") if path.is_file())


def tamper(run: RunDir, change: Callable[[Any], Any], kinds: tuple[str, ...] = ()) -> None:
    """Let `change` make another value of every value in the events (of these kinds), and seal the log again."""
    previous = ""
    for path in sorted((run.path / "record").glob("*.json")):
        event = read_sealed_json(path)
        if not kinds or event["kind"] in kinds:
            event = _changed(event, change)
        write_sealed_json(path, event | {"previous": previous})
        previous = seal(event | {"previous": previous})


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """From the leaves up; a change of a dictionary's key counts too."""
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
