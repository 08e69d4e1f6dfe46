"""A run in an object store survives kills as on a disk, and nodes that do not share the store are named."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray import LocalBackend, RayBackend, run_job
from mnist_ray.cli.main import main
from mnist_ray.config import TrainingConfig
from mnist_ray.errors import SpecError
from mnist_ray.record.exports import exports_are_current
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage import files
from mnist_ray.storage.files import storage_path
from mnist_ray.storage.object_stores import OutOfReachError
from mnist_ray.training.checkpoint import Checkpoints
from tests.faults.nodes import real_nodes
from tests.small_job import essence, in_forks, run_in_a_fork, save_every_epoch, small_spec, use_few_images, warm_up

POINTS = (
    "event-run_taken:after:1", "event-epoch_reported:after:2", "checkpoint-tensors:after:1",
    "checkpoint-manifest:after:2", "event-training_ended:before:2", "event-test_opened:after:1", "logits:after:1",
    "study.sqlite3:before:1",
)  # fmt: skip


@pytest.fixture
def small_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)
    save_every_epoch(monkeypatch)
    warm_up(tmp_path)


@pytest.mark.timeout(600)
def test_kills_in_a_store_lose_nothing(small_jobs: None, store: str, tmp_path: Path) -> None:
    assert run_in_a_fork(small_spec(tmp_path)) == 0
    expected = essence(tmp_path / "small")

    def drive(share: tuple[str, ...]) -> None:
        for point in share:
            storage = f"{store}/{point.replace(':', '-')}"
            assert run_in_a_fork(small_spec(storage), point) == -9, f"{point} was not reached"
            assert run_in_a_fork(small_spec(storage)) == 0, point
            assert essence(storage_path(storage) / "small") == expected, point
            assert exports_are_current(RunDir(storage_path(storage) / "small")), point

    assert in_forks(lambda: drive(POINTS[::2]), lambda: drive(POINTS[1::2])) == [0, 0]


def test_runs_in_a_store_are_reported(
    small_jobs: None, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_forks(
        lambda: run_job(small_spec(store), LocalBackend()), lambda: run_job(small_spec(tmp_path), LocalBackend())
    ) == [0, 0]
    assert main(["report", "small", "--storage", store]) == 0
    assert f"report: {store}/small/report.html" in capsys.readouterr().out
    assert files.read(storage_path(f"{store}/small/report.html")).startswith(b"<!doctype html>")
    assert main(["results", "--storage", store]) == 0
    assert main(["compare", f"{store}/small", str(tmp_path / "small")]) == 0


@pytest.fixture
def a_node_without_the_key(store: str) -> Iterator[str]:
    """Yield the address of a cluster with a node that may not read the store."""
    with real_nodes(1) as nodes:
        nodes.add_one(wait=True, without=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
        yield nodes.address


def test_nodes_without_the_store_are_named(a_node_without_the_key: str, store: str) -> None:
    spec = small_spec(store, retrain={"num_epochs": 1, "workers": 1})
    with pytest.raises(SpecError, match=r"node [\d.]+ does not share it \(.*redential"):
        run_job(spec, RayBackend(a_node_without_the_key))
    assert RunDir(storage_path(store) / "small").state.trainings("search") == []


def test_later_nodes_need_the_store(tmp_path: Path) -> None:
    config = TrainingConfig(num_epochs=1)
    there = Checkpoints.of_owner(tmp_path / "checkpoints", 1, config, sentinel=tmp_path / "000001.json")
    with pytest.raises(OutOfReachError, match="does not share this storage"):
        there.latest()
    (tmp_path / "000001.json").touch()
    assert there.latest() is None
