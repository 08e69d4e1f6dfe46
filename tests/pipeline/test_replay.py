"""A trial that is trained again from the record comes to the same numbers, and one that does not is called out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import LocalBackend, RunDir, SpecError, run_job
from mnist_ray.pipeline import replay
from mnist_ray.pipeline.replay import replay_trial
from mnist_ray.storage.files import read_sealed_json, seal, write_sealed_json
from tests.small_job import small_spec, use_few_images
from tests.training.all_parts import ALL_PARTS


@pytest.fixture(scope="module", autouse=True)
def _small_jobs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run_job(small_spec(tmp_path_factory.mktemp("runs")), LocalBackend())


def replayed(run: RunDir, number: int) -> replay.Replay:
    return replay_trial(RunDir(run.path), number, None, lambda metrics: None)


def test_every_trial_is_the_same_again(searched: RunDir) -> None:
    for training in searched.state.trainings("search"):
        assert training.number is not None
        again = replayed(searched, training.number)
        assert again.is_good and again.is_same_environment, str(again)
        assert f"the same numbers, bit for bit, in {training.epochs_done} epochs" in str(again)


def test_all_parts_are_replayed(tmp_path: Path) -> None:
    run = run_job(small_spec(tmp_path, training=ALL_PARTS), LocalBackend())
    _, second = run.state.trainings("search")[:2]  # the first is the recipe, which has none of the parts
    assert all(metrics.raw_validation for metrics in second.history)
    again = replayed(run, 1)
    assert again.is_good and again.is_same_environment, str(again)


def test_another_machine_gets_the_tolerance(searched: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "processor", lambda: "another one")
    again = replayed(searched, 0)
    assert again.is_good and not again.is_same_environment
    assert "processor another one here" in str(again)


def test_wrong_numbers_are_called_out(searched: RunDir, tmp_path: Path) -> None:
    copy = RunDir(Path(shutil.copytree(searched.path, tmp_path / "copy")))
    previous = ""
    for path in sorted(copy.paths.record.glob("*.json")):
        content: dict[str, Any] = read_sealed_json(path) | {"previous": previous}
        for event in content["events"]:
            if event["kind"] == "epoch_reported" and event["id"] == "trial-0000":
                event["metrics"]["validation"]["loss"] *= 1 + 1e-12
        write_sealed_json(path, content)
        previous = seal(json.loads(json.dumps(content)))
    again = replayed(copy, 0)
    assert not again.is_good
    assert "NOT the same numbers" in str(again) and "val_loss" in str(again)


@pytest.mark.parametrize("number", [-1, 3, 99])
def test_absent_trial_is_refused(searched: RunDir, number: int) -> None:
    with pytest.raises(SpecError, match=r"--trial .*has no such trial \(there: 0 to 2\)"):
        replayed(searched, number)
