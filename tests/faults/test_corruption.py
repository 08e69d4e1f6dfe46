"""Two hundred random flips, cuts and deletions in records and checkpoints: none is believed."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import RunDir
from mnist_ray.config import TrainingConfig
from mnist_ray.errors import CorruptFileError
from mnist_ray.record.rundir import Training
from mnist_ray.training.checkpoint import Checkpoints, SavedState
from tests.faults.small_job import essence, run_in_a_fork, small_spec, stand_in, warm_up

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
        stand_in(patch)
        warm_up(folder)
        assert run_in_a_fork(small_spec(folder / "finished")) == 0
        assert run_in_a_fork(small_spec(folder / "searching"), "checkpoint-manifest:after:2") == -9
        assert run_in_a_fork(small_spec(folder / "retraining"), "model:before:1") == -9
    return [folder / name / "small" for name in ("finished", "searching", "retraining")]


def read_everything(path: Path) -> dict[str, Any]:
    """What resuming, reporting and predicting read. Raises CorruptFileError."""
    run = RunDir(path)
    seen = essence(path)
    blobs = {name: run.model_content(name) for name in seen["trainings"]}
    return {**seen, "blobs": blobs, "stages": [entry["stage"] for entry in run.all_stages()]}


def checkpoints_of(path: Path) -> dict[str, SavedState | None]:
    run = RunDir(path)
    open_ones = [one for stage in ("search", "retrain") for one in run.trainings(stage) if one.status is None]
    return {one.id: latest(run, one) for one in open_ones}


def latest(run: RunDir, training: Training) -> SavedState | None:
    config = TrainingConfig(**training.config)
    return Checkpoints.of_generation(run.checkpoints(training.id), run.generation + 1, config).latest()


def every_state(path: Path) -> dict[str, list[SavedState | None]]:
    """For each open training, what may be gone on from: each of its sound checkpoints, or none."""
    found: dict[str, list[SavedState | None]] = {}
    copy = path.parent / "every-state"
    shutil.copytree(path, copy)
    while any(states := checkpoints_of(copy).values()):
        for name, state in checkpoints_of(copy).items():
            found.setdefault(name, [None]).append(state)
        for state in states:
            assert state is not None
            for folder in copy.glob(f"checkpoints/*/*/epoch-{state.completed_epochs:04d}"):
                shutil.rmtree(folder)
    shutil.rmtree(copy)
    return found


def test_no_damaged_record_and_no_damaged_checkpoint_is_believed(runs: list[Path], tmp_path: Path) -> None:
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
        is_last_event = victim == max((copy / "record").glob("*.json"))
        damage(victim, chance)
        what = f"{damage.__name__} of {victim.relative_to(copy)} in {run}"
        try:
            seen, resumed = read_everything(copy), checkpoints_of(copy)
        except CorruptFileError as error:
            counts["refused and named" if victim.name in str(error) else "refused"] += 1
            continue
        if damage is delete and is_last_event and run != runs[0]:
            continue  # as if it had been killed before that event; a run that ended in order knows how many there were
        assert seen == truths[run], what
        for name, state in resumed.items():
            assert state in states[run].get(name, [None]), what
        counts["passed over" if victim.is_relative_to(copy / "checkpoints") else "harmless"] += 1
        shutil.rmtree(copy)
    assert counts["refused and named"] > 50, counts
    assert counts["refused"] < 10, counts  # events missing at the end have no file that could be named
    assert counts["passed over"] > 20, counts
