"""Two hundred random flips, cuts and deletions in records and checkpoints: each is noticed or harmless."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import RunDir
from mnist_ray.errors import CorruptFileError
from mnist_ray.record.state import Training
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from tests.small_job import essence, run_in_a_fork, save_every_epoch, small_spec, use_few_images, warm_up

NUM_DAMAGES = 200


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


DAMAGES = (flip, cut, delete)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A finished run, one that was killed in its search and one that was killed in its retraining."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        save_every_epoch(patch)
        warm_up(folder)
        assert run_in_a_fork(small_spec(folder / "finished")) == 0
        assert run_in_a_fork(small_spec(folder / "searching"), "checkpoint-manifest:after:2") == -9
        assert run_in_a_fork(small_spec(folder / "retraining"), "model:before:1") == -9
    return [folder / name / "small" for name in ("finished", "searching", "retraining")]


def read_everything(path: Path) -> dict[str, Any]:
    """Return what resuming, reporting and predicting read. Raises CorruptFileError."""
    run = RunDir(path)
    seen = essence(path)
    blobs = {name: run.weights(name) for name in seen["trainings"]}
    return {**seen, "blobs": blobs, "stages": run.state.stage_events}


def checkpoints_of(path: Path) -> dict[str, SavedState | None]:
    run = RunDir(path)
    state = run.state
    trainings = [*state.trainings("search"), *state.trainings("retrain")]
    return {training.id: latest(run, training) for training in trainings if training.status is None}


def latest(run: RunDir, training: Training) -> SavedState | None:
    """Return the checkpoint that the run's next owner would go on from."""
    folder, sentinel = run.paths.checkpoints(training.id), run.paths.first_file
    return Checkpoints.of_owner(folder, run.state.fencing_token + 1, training.config, sentinel).latest()


def every_state(path: Path) -> dict[str, list[SavedState | None]]:
    """Return for each open training all states that it may go on from: each of its sound checkpoints, or none."""
    found: dict[str, list[SavedState | None]] = {}
    copy = path.parent / "every-state"
    shutil.copytree(path, copy)
    for name in checkpoints_of(copy):
        found[name] = [None]
        while (state := checkpoints_of(copy)[name]) is not None:
            found[name].append(state)
            for folder in copy.glob(f"checkpoints/{name}/*/epoch-{state.completed_epochs:04d}"):
                shutil.rmtree(folder)
    shutil.rmtree(copy)
    return found


def test_damage_is_never_believed(runs: list[Path], tmp_path: Path) -> None:
    chance = random.Random(7)
    truths = {run: read_everything(run) for run in runs}
    states = {run: every_state(run) for run in runs}
    assert any(len(known) == 3 for run in runs for known in states[run].values()), "checkpoints are there to be damaged"
    counts = {"refused and named": 0, "refused": 0, "passed over": 0, "harmless": 0}
    for number in range(NUM_DAMAGES):
        run = chance.choice(runs)
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        kind = chance.choice(["record", "checkpoints"])
        victims = sorted(path for path in (copy / kind).rglob("*") if path.is_file()) or sorted(
            (copy / "record").glob("*.json")
        )
        victim, damage = chance.choice(victims), chance.choice(DAMAGES)
        is_last_file = victim == max((copy / "record").glob("*.json"))
        damage(victim, chance)
        what = f"{damage.__name__} of {victim.relative_to(copy)} in {run}"
        try:
            seen, resumed = read_everything(copy), checkpoints_of(copy)
        except CorruptFileError as error:
            counts["refused and named" if victim.name in str(error) else "refused"] += 1
            continue
        if damage is delete and is_last_file and run != runs[0]:
            continue  # as if it had been killed before that file; the lease of a run that ended in order has the number
        assert seen == truths[run], what
        for name, state in resumed.items():
            assert state in states[run].get(name, [None]), what
        counts["passed over" if victim.is_relative_to(copy / "checkpoints") else "harmless"] += 1
        shutil.rmtree(copy)
    assert counts["refused and named"] > 50, counts
    assert counts["refused"] < 10, counts  # events missing at the end have no file that could be named
    assert counts["passed over"] > 20, counts
