"""Whole jobs on the local backend: what is on record, what may change between sessions, and in which order."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mnist_ray import (
    Callback,
    JobSpec,
    LocalBackend,
    RunDir,
    SpecError,
    load_spec,
    read_results,
    run_job,
    search_job,
    train_job,
    write_report,
)
from mnist_ray.callbacks import TrainingInfo, TrainingOutcome
from mnist_ray.errors import TrainingFailedError
from mnist_ray.pipeline.prediction import evaluate_run
from mnist_ray.record.events import RunTaken, kind_of
from mnist_ray.record.exports import write_exports
from mnist_ray.record.process import this_process
from mnist_ray.record.writer import RunWriter
from tests.small_job import NUM_IMAGES, Remembering, small_spec, use_few_images


@pytest.fixture(scope="module", autouse=True)
def _small_jobs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        yield


class StopInTheFinal(Callback):
    """Interrupts the run, as Ctrl-C does, when a training of the final round has ended."""

    def on_training_end(self, training: TrainingInfo, outcome: TrainingOutcome) -> None:
        if training.stage == "final":
            raise KeyboardInterrupt


def job_spec(storage: Path, **changes: Any) -> JobSpec:
    return small_spec(
        storage, **{"search__num_trials": 5, "final": {"top_k": 2, "seeds": 2, "keep_recipe_within_se": 0}, **changes}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, RunDir]:
    spec = job_spec(tmp_path_factory.mktemp("finished"))
    return spec, run_job(spec, LocalBackend())


# --- the record --------------------------------------------------------------------------------------------------


def test_each_training_is_one_row(finished: tuple[JobSpec, RunDir]) -> None:
    _, run = finished
    table = read_results(run.paths.results_csv)
    trials, retrained = table[table["stage"] == "search"], table[table["stage"] == "retrain"]
    assert len(trials) == 5
    assert set(trials["status"]) <= {"complete", "pruned"}
    assert (trials["val_examples"] == 30).all()
    assert (trials["train_examples"] == NUM_IMAGES - 30).all()
    assert trials["test_loss"].isna().all()
    assert (retrained["train_examples"] == NUM_IMAGES).all()
    assert retrained["val_loss"].isna().all()
    assert (retrained["test_examples"] == NUM_IMAGES).all()
    assert (retrained["epochs_done"] == 2).all()
    assert (retrained["workers"] == 1).all()
    accuracy = table["val_correct"] / table["val_examples"]
    np.testing.assert_allclose(table["val_accuracy"].dropna().astype(float), accuracy.dropna().astype(float))


def test_final_decides_the_selection(finished: tuple[JobSpec, RunDir]) -> None:
    spec, run = finished
    table = read_results(run.paths.results_parquet)
    trials = table[(table["stage"] == "search") & (table["id"] != "trial-0000")]
    complete = trials[trials["status"] == "complete"].sort_values("val_loss")
    finals = table[table["role"] == "finalist"]
    best_two = complete["id"].head(2).tolist()
    assert set(finals["id"]) == {f"final-{name}-seed-{number}" for name in ["recipe", *best_two] for number in (0, 1)}
    assert (finals["status"] == "complete").all() and (finals["epochs_done"] == spec.final_epochs).all()
    assert finals["seed"].nunique() == 2
    assert not set(finals["seed"]) & {*table[table["stage"] != "final"]["seed"]}
    means = finals.groupby(finals["id"].str.extract("final-(.*)-seed", expand=False))["val_loss"].mean()
    selected = run.state.selected
    assert selected is not None and selected.final is not None
    assert {each.of: each.mean for each in selected.final.finalists} == pytest.approx(means.to_dict())
    assert selected.training == means.idxmin() != "recipe"


def test_first_trials_are_fixed(tmp_path: Path) -> None:
    """And go on to their end, however bad they are."""
    spec = job_spec(
        tmp_path, recipe__learning_rate=1e-6, training={"schedule": "cosine", "warmup": 0.0}, search__num_trials=6
    )
    trials = search_job(spec, LocalBackend()).state.trainings("search")
    assert [trial.config.hyperparameters for trial in trials[:2]] == [spec.baseline, spec.starting_point]
    assert [trial.status for trial in trials[:2]] == ["complete", "complete"]
    assert {trial.config.schedule for trial in trials[1:]} == {"cosine"}


def test_winning_recipe_is_retrained_once(tmp_path: Path) -> None:
    """Nothing beats it by a thousand standard errors."""
    run = run_job(job_spec(tmp_path, final={"keep_recipe_within_se": 1000.0}), LocalBackend())
    selected = run.state.selected
    assert selected is not None and selected.final is not None
    assert (selected.training, selected.hyperparameters) == ("trial-0000", job_spec(tmp_path).baseline)
    assert [(plan.id, plan.role) for plan in selected.retrainings] == [("retrain-recipe-seed-0", "selected = baseline")]
    assert run.state.tested is not None and set(run.state.tested.scores) == {"retrain-recipe-seed-0"}
    assert load_spec(run.paths.selected_spec).baseline == job_spec(tmp_path).baseline


def test_final_models_are_tested_without_retraining(tmp_path: Path) -> None:
    """Whatever wins: each side's models of the final round, which are read like retrained ones."""
    spec = job_spec(tmp_path, retrain=None, final={"top_k": 1, "seeds": 2, "num_epochs": 3, "keep_recipe_within_se": 0})
    run = run_job(spec, LocalBackend())
    selected = run.state.selected
    assert selected is not None and run.state.tested is not None
    assert run.state.trainings("retrain") == [] and run.state.retrained is None
    assert set(run.state.tested.scores) == {training.id for training in run.state.trainings("final")}
    sides = [(plan.id.rpartition("-seed-")[0], plan.role) for plan in selected.retrainings]
    assert sides == [(f"final-{selected.training}", "selected")] * 2 + [("final-recipe", "baseline")] * 2
    assert evaluate_run(run) == {name: tests["test"].score for name, tests in run.state.tested.scores.items()}
    review = write_report(run)
    assert "Tested models" in run.paths.results_markdown.read_text()
    assert any(line.startswith("baseline (seed ") for line in review.summary())
    assert load_spec(run.paths.selected_spec).tested_epochs == 3


def test_stopped_final_round_keeps_its_models(tmp_path: Path) -> None:
    """Stopped after its first training, and gone on with."""
    spec = job_spec(tmp_path, retrain=None)
    undisturbed = run_job(spec.model_copy(update={"name": "undisturbed"}), LocalBackend())
    with pytest.raises(KeyboardInterrupt):
        run_job(spec, LocalBackend(), callbacks=[StopInTheFinal()])
    run = run_job(spec, LocalBackend())
    ids = [training.id for training in undisturbed.state.trainings("final")]
    assert ids == [training.id for training in run.state.trainings("final")]
    assert [run.weights(each) for each in ids] == [undisturbed.weights(each) for each in ids]
    assert None not in {run.weights(each) for each in ids}


def test_retraining_cannot_be_left_out_alone(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="final is null too: set one of the two"):
        job_spec(tmp_path, retrain=None, final=None)
    with pytest.raises(SpecError, match="'mnist-ray train' does not have"):
        train_job(job_spec(tmp_path, retrain=None), LocalBackend())


def test_failing_recipe_ends_the_run(tmp_path: Path) -> None:
    spec = job_spec(tmp_path, recipe__learning_rate=1e30)
    for _ in range(2):
        with pytest.raises(TrainingFailedError, match=r"the recipe failed in the final round.*diverged.*log: "):
            run_job(spec, LocalBackend())
    run = RunDir(tmp_path / "small")
    assert run.state.final_ended is not None and run.state.selected is None
    assert run.paths.training_log("final-recipe-seed-0").is_file()


def test_test_opens_once_after_the_selection(finished: tuple[JobSpec, RunDir]) -> None:
    _, run = finished
    kinds = [kind_of(type(event)) for event in run.state.stage_events]
    search = ["session_started", "search_started", "search_ended", "final_started", "final_ended"]
    retraining = ["retraining_started", "retraining_ended"]
    assert kinds == [*search, "configuration_selected", *retraining, "test_opened", "test_scored"]


def test_optuna_opens_the_study(finished: tuple[JobSpec, RunDir]) -> None:
    spec, run = finished
    study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{run.paths.study}")
    for trial, training in zip(study.trials, run.state.trainings("search"), strict=True):
        assert trial.state.name == {"complete": "COMPLETE", "pruned": "PRUNED"}[str(training.status)]
        assert trial.intermediate_values == {row.epoch: row.objective("val_loss") for row in training.history}
        assert trial.user_attrs["training"] == training.id


def test_storage_names_are_no_addresses(tmp_path: Path) -> None:
    storage = tmp_path / "50%20 of ours, or what?mode=ro#1"
    run = run_job(job_spec(storage), LocalBackend())
    write_report(run)
    assert list(tmp_path.iterdir()) == [storage]
    assert run.paths.study.stat().st_size > 0 and run.paths.report.is_file()
    assert [file.name for file in storage.iterdir()] == ["small"]


def test_later_evaluation_gets_recorded_scores(finished: tuple[JobSpec, RunDir]) -> None:
    _, run = finished
    tested = run.state.tested
    assert tested is not None
    assert evaluate_run(run) == {name: tests["test"].score for name, tests in tested.scores.items()}


def test_kept_logits_give_the_scores(finished: tuple[JobSpec, RunDir]) -> None:
    from mnist_ray import data

    _, run = finished
    labels = data.open_data("digits", Path()).load_test().labels
    assert run.state.tested is not None
    for training_id, tests in run.state.tested.scores.items():
        logits = np.load(run.paths.test_logits(training_id), allow_pickle=False)
        assert int((logits.argmax(axis=1) == labels).sum()) == tests["test"].score.num_correct


# --- sessions ----------------------------------------------------------------------------------------------------


def test_oversized_batch_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the log at the start, and by the report."""
    spec = job_spec(tmp_path, recipe__batch_size=1000)
    run = run_job(spec, LocalBackend())
    message = f"recipe.batch_size goes up to 1000, but trials learn from {NUM_IMAGES - 30} images"
    assert [text for text in caplog.messages if text.startswith(message)]
    assert any(line.startswith(f"warning: {message}") for line in write_report(run).summary())


def test_finished_run_is_left_alone(finished: tuple[JobSpec, RunDir], caplog: pytest.LogCaptureFixture) -> None:
    spec, run = finished
    caplog.set_level(logging.INFO, "mnist_ray")
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*"))
    run_job(spec, LocalBackend())
    assert caplog.messages == [f"{run.path} is finished: nothing to do"]
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"recipe__dropout": 0.3}, "recipe.dropout"), ({"search__num_epochs": 4}, "num_epochs")],
)
def test_changed_results_are_refused(finished: tuple[JobSpec, RunDir], change: dict[str, Any], named: str) -> None:
    spec, _ = finished
    with pytest.raises(SpecError, match=named):
        run_job(job_spec(Path(spec.storage), **change), LocalBackend())


def test_no_trial_after_the_test(finished: tuple[JobSpec, RunDir]) -> None:
    spec, _ = finished
    with pytest.raises(SpecError, match=r"search\.num_trials: 5 in the run, 6 now.*test split was opened"):
        run_job(job_spec(Path(spec.storage), search__num_trials=6), LocalBackend())


def test_selected_spec_trains_the_same(finished: tuple[JobSpec, RunDir], tmp_path: Path) -> None:
    _, run = finished
    again = train_job(load_spec(run.paths.selected_spec, [f"storage={tmp_path}"]), LocalBackend())
    assert run.state.tested is not None and again.state.tested is not None
    (score,) = again.state.tested.scores.values()
    assert score in run.state.tested.scores.values()


def test_more_trials_reopen_the_selection(tmp_path: Path) -> None:
    run = search_job(job_spec(tmp_path, search__num_trials=3), LocalBackend())
    earlier = {training.id: training for training in run.state.trainings("search")}
    remembering = Remembering()
    run = search_job(job_spec(tmp_path, search__num_trials=5), LocalBackend(), [remembering])
    later = {training.id: training for training in run.state.trainings("search")}
    assert len(later) == 5
    assert {key: later[key] for key in earlier} == earlier
    ended = [training.id for training, _ in remembering.ends if training.stage == "search"]
    assert ended == ["trial-0003", "trial-0004"]
    kinds = [kind_of(type(event)) for event in run.state.stage_events]
    assert kinds.count("configuration_selected") == 2
    assert run.state.selection_is_current
    again = [training.id for training, _ in remembering.ends if training.stage == "final"]
    assert "final-recipe-seed-0" not in again, "what the final trained is used again"


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnist_ray import data

    search_job(job_spec(tmp_path, search__num_trials=1), LocalBackend())
    whole = data.open_data("digits", Path()).training
    monkeypatch.setattr(data.opened, "load_training", lambda name, folder: whole.take(np.arange(NUM_IMAGES - 1)))
    with pytest.raises(SpecError, match="the data or the split differ from those"):
        search_job(job_spec(tmp_path, search__num_trials=2), LocalBackend())


def test_another_release_is_refused(tmp_path: Path) -> None:
    """Both versions are named, and the run is still shown."""
    spec = job_spec(tmp_path)
    search_job(job_spec(tmp_path, search__num_trials=1), LocalBackend())
    other = RunDir(tmp_path / "small")
    assert other.state.session is not None
    RunWriter(other, RunTaken(format=99, version="9.9.9", host="here", process=this_process())).close()
    with pytest.raises(SpecError, match=r"mnist_ray 9\.9\.9, whose record mnist_ray 0\.1\.0 cannot continue"):
        run_job(spec, LocalBackend())
    other.paths.results_csv.unlink()
    write_exports(other.path)
    assert other.paths.results_csv.is_file()


def test_narrow_search_is_reported(tmp_path: Path) -> None:
    """The learning rates end where they begin to be of use."""
    spec = job_spec(
        tmp_path,
        search__space={"learning_rate": {"choices": [1e-6, 1e-5, 1e-4]}},
        search__num_trials=6,
        search__num_epochs=4,
        recipe__batch_size=4,
        search__early_stopping=None,
        final=None,
    )
    review = write_report(search_job(spec, LocalBackend()))
    assert review.search is not None
    (warning,) = [each for each in review.search.warnings if each.patch]
    assert "learning_rate 0.0001 at its high end" in warning.text
    assert "[1.0e-06, 1.0e-05, 0.0001, 0.0002]" in (warning.patch or "")
    assert "This run is not finished" in review.run.paths.report.read_text()
