"""Whole jobs on a real Ray cluster, small: digits, few trials, few epochs."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mnist_ray import (
    JobSpec,
    RunDir,
    Site,
    SpecError,
    load_spec,
    parse_spec,
    read_results,
    run_job,
    search_job,
    train_job,
    write_report,
)
from mnist_ray.errors import TrainingFailedError
from mnist_ray.pipeline.prediction import evaluate_run, predict_images
from mnist_ray.pipeline.stages import Listener
from mnist_ray.record.exports import write_views
from mnist_ray.record.rundir import Training
from tests.ray_head import Head, descendants

NOWHERE = Site(address="127.0.0.1:1")  # joining it fails, so a run that works with it joins nothing


class Remembering(Listener):
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.trials: list[Training] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trial_ended(self, training: Training) -> None:
        self.trials.append(training)


def small_spec(storage: Path, **changes: Any) -> JobSpec:
    content: dict[str, Any] = {
        "name": "small",
        "storage": str(storage),
        "data": {"name": "digits", "num_validation": 180},
        "search": {"num_trials": 5, "num_epochs": 3},
        "confirm": {"top_k": 2, "seeds": 2},
        "retrain": {"num_epochs": 3, "workers": 2},
    }
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (content.setdefault(part, {}) if part else content)[name] = value
    return parse_spec(content)


@pytest.fixture(scope="module")
def finished(head: Head, tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, RunDir]:
    spec = small_spec(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        return spec, run_job(spec, Site(head.address))


def test_every_training_is_one_row_and_says_what_it_did(finished: tuple[JobSpec, RunDir]) -> None:
    _, run = finished
    table = read_results(run.results_csv)
    trials, retrained = table[table["stage"] == "search"], table[table["stage"] == "retrain"]
    assert len(trials) == 5
    assert set(trials["status"]) <= {"complete", "pruned"}
    assert (trials["val_examples"] == 180).all()
    assert (trials["train_examples"] == 1257).all()
    assert trials["test_loss"].isna().all()
    assert (retrained["train_examples"] == 1437).all()
    assert retrained["val_loss"].isna().all()
    assert (retrained["test_examples"] == 360).all()
    assert (retrained["epochs_done"] == 3).all()
    assert (retrained["workers"] == 2).all()
    accuracy = table["val_correct"] / table["val_examples"]
    np.testing.assert_allclose(table["val_accuracy"].dropna().astype(float), accuracy.dropna().astype(float))


def test_the_best_two_run_again_on_the_same_fresh_seeds_and_the_better_mean_is_chosen(
    finished: tuple[JobSpec, RunDir],
) -> None:
    spec, run = finished
    table = read_results(run.results_parquet)
    complete = table[(table["stage"] == "search") & (table["status"] == "complete")].sort_values("val_loss")
    confirmed = table[table["role"] == "confirmation"]
    best_two = complete["id"].head(2).tolist()
    assert confirmed["id"].tolist() == [
        f"confirm-{trial}-seed-{number}" for trial in sorted(best_two) for number in (0, 1)
    ]
    assert (confirmed["status"] == "complete").all() and (confirmed["epochs_done"] == spec.search.num_epochs).all()
    assert confirmed["seed"].nunique() == 2
    assert not set(confirmed["seed"]) & set(table[table["stage"] == "search"]["seed"])
    means = confirmed.groupby(confirmed["id"].str.extract("(trial-[0-9]+)", expand=False))["val_loss"].mean()
    chosen = run.stage("chosen")
    assert chosen is not None
    assert chosen["training"] == means.idxmin()
    assert chosen["confirmed_score"] == pytest.approx(means.min())


def test_the_first_trial_is_the_recipe(finished: tuple[JobSpec, RunDir]) -> None:
    spec, run = finished
    first = run.training("trial-0000")
    assert first is not None
    assert {key: first.config[key] for key in ("learning_rate", "dropout", "batch_size")} == spec.recipe.model_dump()


def test_the_test_split_is_unsealed_once_and_after_the_choice(finished: tuple[JobSpec, RunDir]) -> None:
    _, run = finished
    stages = [entry["stage"] for entry in run.all_stages()]
    before = ["started", "searching", "searched", "confirming", "confirmed", "chosen"]
    assert stages == [*before, "retrained", "unsealed", "tested"]


def test_optuna_opens_the_study_and_finds_it_true(finished: tuple[JobSpec, RunDir]) -> None:
    spec, run = finished
    study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{run.study}")
    for trial, training in zip(study.trials, run.trainings("search"), strict=True):
        assert trial.state.name == {"complete": "COMPLETE", "pruned": "PRUNED"}[str(training.status)]
        assert trial.intermediate_values == {row["epoch"]: row["val_loss"] for row in training.history}
        assert trial.user_attrs["training"] == training.id


def test_a_later_evaluation_gets_the_recorded_scores(finished: tuple[JobSpec, RunDir]) -> None:
    _, run = finished
    tested = run.stage("tested")
    assert tested is not None
    recorded = {name: {**score} for name, score in tested["scores"].items()}
    assert all(len(score.pop("test_logits")) == 64 for score in recorded.values())
    assert evaluate_run(run) == recorded


def test_kept_logits_belong_to_the_scores(finished: tuple[JobSpec, RunDir]) -> None:
    from mnist_ray.data import load_test

    _, run = finished
    labels = load_test("digits", Path()).labels
    for training_id, score in (run.stage("tested") or {})["scores"].items():
        logits = np.load(run.test_logits(training_id), allow_pickle=False)
        assert int((logits.argmax(axis=1) == labels).sum()) == score["test_correct"]


def test_the_models_predict_image_files(finished: tuple[JobSpec, RunDir], tmp_path: Path) -> None:
    from PIL import Image

    from mnist_ray.data import load_training

    _, run = finished
    examples = load_training("digits", Path())
    paths = []
    for index in range(20):
        paths.append(tmp_path / f"{index}.png")
        image = examples.images[index, 0]
        Image.fromarray(image if index % 2 else 255 - image).save(paths[-1])  # both polarities
    predicted = predict_images(run, paths).argmax(axis=1)
    assert (predicted == examples.labels[:20]).mean() > 0.7


def test_a_finished_run_is_shown_and_not_repeated(finished: tuple[JobSpec, RunDir]) -> None:
    spec, run = finished
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*"))
    listener = Remembering()
    run_job(spec, NOWHERE, listener)
    assert listener.notes == [f"{run.path} is finished: nothing to do"]
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"recipe__dropout": 0.3}, "recipe.dropout"), ({"search__num_epochs": 4}, "num_epochs")],
)
def test_what_defines_results_cannot_change(
    finished: tuple[JobSpec, RunDir], change: dict[str, Any], named: str
) -> None:
    spec, _ = finished
    with pytest.raises(SpecError, match=named):
        run_job(small_spec(Path(spec.storage), **change), NOWHERE)


def test_no_trial_is_added_after_the_test(finished: tuple[JobSpec, RunDir]) -> None:
    spec, _ = finished
    with pytest.raises(SpecError, match=r"search\.num_trials: 5 in the run, 6 now.*unsealed"):
        run_job(small_spec(Path(spec.storage), search__num_trials=6), NOWHERE)


def test_best_yaml_trains_the_choice_again(finished: tuple[JobSpec, RunDir], joined: str, tmp_path: Path) -> None:
    _, run = finished
    spec = load_spec(run.best_spec, [f"storage={tmp_path}"])
    again = train_job(spec, Site(joined))
    scores = (run.stage("tested") or {})["scores"]
    (score,) = (again.stage("tested") or {})["scores"].values()
    assert score in scores.values()


def test_more_trials_extend_a_search_and_reopen_the_choice(joined: str, tmp_path: Path) -> None:
    run = search_job(small_spec(tmp_path, search__num_trials=3), Site(joined))
    earlier = {training.id: training for training in run.trainings("search")}
    listener = Remembering()
    run = search_job(small_spec(tmp_path, search__num_trials=5), Site(joined), listener)
    later = {training.id: training for training in run.trainings("search")}
    assert len(later) == 5
    assert {key: later[key] for key in earlier} == earlier
    assert sorted(trial.id for trial in listener.trials if trial.stage == "search") == ["trial-0003", "trial-0004"]
    assert [entry["stage"] for entry in run.all_stages()].count("chosen") == 2


def test_the_report_of_a_search_that_is_too_narrow_says_so_and_how_to_widen_it(joined: str, tmp_path: Path) -> None:
    """The learning rates end where they begin to be of use."""
    spec = small_spec(
        tmp_path,
        search__space={"learning_rate": {"choices": [1e-6, 1e-5, 1e-4]}},
        search__num_trials=6,
        search__early_stopping=None,
    )
    review = write_report(search_job(spec, Site(joined)))
    assert review.search is not None
    (warning,) = [each for each in review.search.warnings if each.patch]
    assert "learning_rate 0.0001 at its high end" in warning.text
    assert "[1.0e-06, 1.0e-05, 0.0001, 0.0002]" in (warning.patch or "")
    assert "This run is not finished" in review.run.report.read_text()


def test_a_trial_that_diverges_or_raises_is_recorded_and_never_chosen(joined: str, tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path,
        search__space={"learning_rate": {"choices": [0.001, 1e30]}},
        search__num_trials=8,
        search__early_stopping=None,  # so that the first trial gets to its last epoch, where a checkpoint is due
        seed=3,
    )
    blocked = tmp_path / "small" / "checkpoints" / "trial-0000"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the trial wants a folder")
    run = search_job(spec, Site(joined))
    trials = run.trainings("search")
    assert len(trials) == 8
    raised = trials[0]
    diverged = [trial for trial in trials if trial.config["learning_rate"] == 1e30]
    assert diverged
    assert all(trial.status == "failed" and "diverged" in trial.ended["reason"] for trial in diverged if trial.ended)
    assert raised.status == "failed"
    assert raised.ended is not None
    log = run.training_log(raised.id).read_text()
    assert "Traceback" in log
    assert str(blocked) in log
    chosen = run.stage("chosen")
    assert chosen is not None
    assert chosen["training"] not in {trial.id for trial in [raised, *diverged]}
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{run.study}")
    assert study.trials[0].state.name == "FAIL"
    assert study.trials[0].user_attrs["reason"] == raised.ended["reason"]


def test_a_retraining_that_cannot_go_on_says_why_and_goes_on_later(joined: str, tmp_path: Path) -> None:
    spec = small_spec(tmp_path, max_failures=0)
    blocked = tmp_path / "small" / "checkpoints" / "train-recipe-seed-0"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the training wants a folder")
    with pytest.raises(
        TrainingFailedError, match=r"the retraining failed: .*train-recipe-seed-0.*\(log: .*retrain\.log"
    ):
        train_job(spec, Site(joined))
    blocked.unlink()
    run = train_job(spec, Site(joined))
    (trained,) = run.trainings("retrain")
    assert [row["epoch"] for row in trained.history] == [1, 2, 3]
    assert trained.status == "complete"


def test_when_every_trial_fails_the_job_says_so(joined: str, tmp_path: Path) -> None:
    spec = small_spec(tmp_path, search__space={"learning_rate": {"choices": [1e30, 1e31]}}, search__num_trials=2)
    with pytest.raises(TrainingFailedError, match=r"all 2 trials.*diverged.*log: "):
        run_job(spec, Site(joined))


def test_a_trial_whose_process_dies_is_started_again_and_counted(head: Head, joined: str, tmp_path: Path) -> None:
    spec = small_spec(tmp_path, search__num_trials=1, search__num_epochs=8, search__early_stopping=None)
    killed = _kill_a_trial_once(head, tmp_path)
    run = search_job(spec, Site(joined))
    killed.join()
    (trial,) = run.trainings("search")
    assert trial.status == "complete"
    assert [row["epoch"] for row in trial.history] == list(range(1, 9))
    assert trial.ended is not None
    assert trial.ended["num_failures"] == 1


def test_a_trial_that_dies_too_often_is_failed(head: Head, joined: str, tmp_path: Path) -> None:
    spec = small_spec(tmp_path, search__num_trials=2, search__num_epochs=8, search__early_stopping=None, max_failures=0)
    killed = _kill_a_trial_once(head, tmp_path)
    run = search_job(spec, Site(joined))
    killed.join()
    statuses = sorted(str(trial.status) for trial in run.trainings("search"))
    assert statuses == ["complete", "failed"]
    (failed,) = [trial for trial in run.trainings("search") if trial.status == "failed"]
    assert failed.ended is not None
    assert "its process died" in failed.ended["reason"]
    assert failed.ended["reason"] in run.training_log(failed.id).read_text()


def test_a_process_that_dies_between_two_trials_costs_the_next_one_a_new_start(
    joined: str, head: Head, tmp_path: Path
) -> None:
    class Killing(Remembering):
        def trial_ended(self, training: Training) -> None:
            super().trial_ended(training)
            if len(self.trials) == 2:
                _kill_a_trial(head)

    listener = Killing()
    spec = small_spec(tmp_path, search__num_trials=4, search__max_concurrent_trials=1, search__early_stopping=None)
    search_job(spec, Site(joined), listener)
    assert [(trial.status, (trial.ended or {})["num_failures"]) for trial in listener.trials[:4]] == [
        ("complete", 0),
        ("complete", 0),
        ("complete", 1),
        ("complete", 0),
    ]


def _kill_a_trial(head: Head) -> None:
    trials = [pid for pid, command in descendants(head.pid).items() if "ray::ImplicitFunc" in command]
    os.kill(trials[0], signal.SIGKILL)  # no test runs two jobs at a time


def _kill_a_trial_once(head: Head, storage: Path) -> threading.Thread:
    """Kill one trial's process after its second epoch."""

    def kill() -> None:
        deadline = time.monotonic() + 120
        run = RunDir(storage / "small")
        while not any(trial.epochs_done >= 2 for trial in run.trainings("search")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        _kill_a_trial(head)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_time_budget_ends_the_search_in_good_order(joined: str, tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path, search__num_trials=500, search__num_epochs=4, max_hours=12 / 3600, retrain__num_epochs=1
    )
    run = run_job(spec, Site(joined))
    searched = run.stage("searched")
    assert searched is not None
    assert searched["out_of_time"]
    trials = run.trainings("search")
    assert 2 <= len(trials) < 500
    assert {trial.status for trial in trials} <= {"complete", "pruned", "stopped"}
    assert run.stage("tested") is not None


def test_more_workers_than_the_cluster_has_are_refused(joined: str, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"retrain\.workers: 3 workers .* the cluster has 2: use --set retrain\.workers=2"
    ):
        run_job(small_spec(tmp_path, retrain__workers=3), Site(joined))
    assert RunDir(tmp_path / "small").all_stages() == []


def test_a_run_of_another_release_is_refused_with_both_versions_and_still_shown(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    run = RunDir(tmp_path / "small")
    run.take({"host": "here", "pid": 1, "format": 99, "version": "9.9.9"})
    run.record_stage("started", spec=spec.model_dump(mode="json"))
    with pytest.raises(SpecError, match=r"mnist_ray 9\.9\.9, whose record mnist_ray 0\.1\.0 cannot go on"):
        run_job(spec, NOWHERE)
    write_views(RunDir(run.path))
    assert run.results_csv.is_file()


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no Ray cluster answers"):
        run_job(small_spec(tmp_path), NOWHERE)
