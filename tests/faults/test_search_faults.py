"""Searches in which trials hang, run out of memory or cannot save, on a real Ray cluster."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import JobSpec, RayBackend, parse_spec, run_job, search_job
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.record.state import Training
from tests.faults.conftest import DiskThatTakesNothing
from tests.faults.sabotage import In, hog_memory, sabotaged, sleep, stop_itself

pytestmark = pytest.mark.slow

HANG_LIMIT_S = 10.0
Sabotage = Callable[..., None]


def spec_of(storage: Path, **changes: Any) -> JobSpec:
    content = {
        "name": "small",
        "storage": str(storage),
        "data": {"name": "digits", "num_validation": 180},
        "search": {"num_trials": 3, "num_epochs": 2, "early_stopping": None},
        "final": None,
        "retrain": {"num_epochs": 2, "workers": 2, "baseline": False},
    }
    return parse_spec(content | changes)


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    """Call it with faults, and every job of the test gets them into its training processes."""
    put = SharedImages.put

    def commit(*faults: In) -> None:
        monkeypatch.setattr(SharedImages, "put", lambda images: sabotaged(put(images), *faults))

    return commit


def reason(training: Training) -> str:
    assert training.ended is not None
    return str(training.ended.reason)


def test_hanging_trials_fail_with_where(joined: str, tmp_path: Path, sabotage: Sabotage) -> None:
    sabotage(In(tmp_path / "slept", 0, 3, sleep), In(tmp_path / "stopped", 0, 5, stop_itself))
    run = search_job(spec_of(tmp_path, max_failures=0), RayBackend(joined, hang_limit_s=HANG_LIMIT_S))
    trials = run.state.trainings("search")
    failed = [trial for trial in trials if trial.status == "failed"]
    assert sorted(str(trial.status) for trial in trials) == ["complete", "failed", "failed"]
    assert all(f"{trial.id} (process " in reason(trial) for trial in failed)
    assert sum("sleep (faults/sabotage.py:" in reason(trial) for trial in failed) == 1


def test_bad_disk_ends_the_search_and_leaves_trials_open(
    joined: str, tmp_path: Path, bad_disk: DiskThatTakesNothing
) -> None:
    spec = spec_of(tmp_path, max_failures=0)
    with pytest.raises(OSError, match=bad_disk.message) as raised:
        search_job(spec, RayBackend(joined))
    assert raised.value.errno == bad_disk.errno
    assert str(raised.value.filename).startswith(str(bad_disk.path / "trial-000"))
    bad_disk.mend()
    run = search_job(spec, RayBackend(joined))
    trials = run.state.trainings("search")
    assert [trial.status for trial in trials] == ["complete"] * 3
    assert [[metrics.epoch for metrics in trial.history] for trial in trials] == [[1, 2]] * 3


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def megabytes(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:"))


def test_memory_kill_is_named_and_survived(
    joined: str,
    tmp_path: Path,
    short_folder: Path,
    sabotage: Sabotage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_use = 1 - megabytes("MemAvailable") / megabytes("MemTotal")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{in_use + 3000 / megabytes('MemTotal'):.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    sabotage(In(tmp_path / "trial", 0, 3, hog_memory), In(tmp_path / "rank", 1, 3, hog_memory))
    caplog.set_level(logging.INFO, "mnist_ray")
    run = run_job(spec_of(tmp_path, max_failures=3), RayBackend(temporary_folder=short_folder))
    assert [trial.status for trial in run.state.trainings("search")] == ["complete"] * 3
    assert sum(trial.ended.num_failures for trial in run.state.trainings("search") if trial.ended) >= 1
    notes = [text for text in caplog.messages if "killed because the node ran out of memory" in text]
    assert any(text.startswith("trial-000") for text in notes)
    assert any(text.startswith("the group of workers was ended: ") for text in notes), "a rank, or Ray's own process"
    assert run.state.tested is not None
