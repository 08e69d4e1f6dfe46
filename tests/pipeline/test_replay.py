"""A trial that is trained again from the record comes to the same numbers, and one that does not is called out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import SpecError
from mnist_ray.pipeline import replay
from mnist_ray.pipeline.replay import replay_trial
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import read_sealed_json, seal, write_sealed_json
from tests.faults.small_job import in_a_fork, run_in_a_fork, small_spec, stand_in, warm_up


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A real search without Ray, in a child, so that its training does not change this process."""
    storage = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        warm_up(tmp_path_factory.mktemp("warm"))
        assert run_in_a_fork(small_spec(storage)) == 0
    return RunDir(storage / "small")


def replayed(run: RunDir, number: int, patch: Any = None, **set_there: Any) -> dict[str, Any]:
    """What a replay in a child says."""
    said = run.path.parent / f"said-{number}-{len(set_there)}.json"

    def call() -> None:
        with pytest.MonkeyPatch.context() as inside:
            stand_in(inside)
            for name, value in set_there.items():
                inside.setattr(replay, name, value)
            found = replay_trial(RunDir(run.path), number, None, lambda row: None)
        said.write_text(json.dumps({"text": str(found), "good": found.is_good, "same": found.is_same_place}))

    assert in_a_fork(call) == 0
    result: dict[str, Any] = json.loads(said.read_text())
    return result


def test_every_trial_comes_to_the_same_numbers_bit_for_bit(searched: RunDir) -> None:
    for training in searched.trainings("search"):
        said = replayed(searched, training.asked["number"])
        assert said["good"] and said["same"], said["text"]
        assert f"the same numbers, bit for bit, in {training.epochs_done} epochs" in said["text"]


def test_another_machine_is_named_and_held_to_the_tolerance(searched: RunDir) -> None:
    said = replayed(searched, 0, processor=lambda: "another one")
    assert said["good"] and not said["same"]
    assert "processor another one here" in said["text"]


def test_a_record_that_says_other_numbers_is_called_out(searched: RunDir, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(searched.path, copy.path)
    previous = ""
    for path in sorted(copy.record.glob("*.json")):
        event = read_sealed_json(path) | {"previous": previous}
        if event["kind"] == "epoch" and event["id"] == "trial-0000":
            event["row"]["val_loss"] *= 1 + 1e-12
        write_sealed_json(path, event)
        previous = seal(event)
    said = replayed(copy, 0)
    assert not said["good"]
    assert "NOT the same numbers" in said["text"] and "val_loss" in said["text"]


@pytest.mark.parametrize("number", [-1, 3, 99])
def test_a_trial_that_is_not_there_is_refused_with_those_that_are(searched: RunDir, number: int) -> None:
    with pytest.raises(SpecError, match=r"--trial .*has no such trial \(there: 0 to 2\)"):
        replay_trial(searched, number, None, lambda row: None)
