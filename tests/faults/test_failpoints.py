"""A process that is killed before, in the middle of, or after any durable write loses nothing that matters."""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest

from mnist_ray import run_job
from mnist_ray.storage import files
from mnist_ray.storage.files import FAILPOINT, read_sealed_json
from tests.faults.small_job import essence, in_a_fork, in_forks, run_in_a_fork, small_spec, stand_in, warm_up

LATER = ("event-epoch", "event-ended", "checkpoint-manifest", "lease")  # also killed at a later occurrence


@pytest.fixture(scope="module", autouse=True)
def _plain_loops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        warm_up(tmp_path_factory.mktemp("warm"))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every durable write is known: their names and how often each came."""
    storage = tmp_path_factory.mktemp("undisturbed")

    def call() -> None:
        os.environ[FAILPOINT] = "none"
        run_job(small_spec(storage))
        (storage / "passed.json").write_text(json.dumps(files._passed))

    assert in_a_fork(call) == 0
    return storage


@pytest.mark.timeout(1200)
def test_a_kill_at_any_durable_write_is_made_good_by_the_same_command(undisturbed: Path, tmp_path: Path) -> None:
    expected = essence(undisturbed / "small")
    passed: dict[str, int] = json.loads((undisturbed / "passed.json").read_text())
    points = [f"{here}:1" for here in passed]
    points += [f"{here}:{passed[here] // 2 + 1}" for here in passed if here.startswith(LATER) and passed[here] > 1]
    assert len(points) > 80, "the failpoints are there"

    def drive(share: list[str]) -> None:
        for point in share:
            storage = tmp_path / point.replace(":", "-")
            assert run_in_a_fork(small_spec(storage), point) == -9, f"{point} was not reached"
            assert run_in_a_fork(small_spec(storage)) == 0, point
            assert essence(storage / "small") == expected, point
            check_folder(storage / "small", point)

    assert in_forks(lambda: drive(points[::2]), lambda: drive(points[1::2])) == [0, 0]


def check_folder(path: Path, point: str) -> None:
    """Nothing happened twice, nothing is left half done, and the views are those of the record."""
    events = [read_sealed_json(event) for event in sorted((path / "record").glob("*.json"))]
    for kind in ("asked", "ended"):
        ids = [event["id"] for event in events if event["kind"] == kind]
        assert len(ids) == len(set(ids)), (point, kind, ids)
    stages = [event["stage"] for event in events if event["kind"] == "stage"]
    assert stages.count("unsealed") == 1, point
    leftovers = list(path.rglob(".*"))
    assert not leftovers, (point, leftovers)
    assert not list((path / "checkpoints").iterdir()), point
    table = pd.read_csv(path / "results.csv")
    assert set(table["status"]) <= {"complete", "pruned"}, point
    assert len(table) == len(pd.read_parquet(path / "results.parquet")), point
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        study = optuna.load_study(study_name="small", storage=f"sqlite:///{path / 'study.sqlite3'}")
        assert not [trial for trial in study.trials if not trial.state.is_finished()], point


def test_a_trial_in_flight_goes_on_from_its_last_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    """A kill just after the second epoch's checkpoint costs no epoch: none is trained, so none is reported, twice."""
    spec = small_spec(tmp_path)
    assert run_in_a_fork(spec, "event-epoch:after:2") == -9
    assert run_in_a_fork(spec) == 0
    events = [read_sealed_json(event) for event in sorted((tmp_path / "small" / "record").glob("*.json"))]
    epochs = [event["row"]["epoch"] for event in events if event["kind"] == "epoch" and event["id"] == "trial-0000"]
    assert epochs == [1, 2]
    assert essence(tmp_path / "small") == essence(undisturbed / "small")
