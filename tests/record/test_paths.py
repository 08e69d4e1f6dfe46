"""Everything of a run lies in its folder, and no training's id leads out of that folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.paths import RunPaths


def test_paths_are_absolute_and_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in folders of their own, where a relative path means another file."""
    monkeypatch.chdir(tmp_path)
    run = RunPaths(Path("results/mnist"))
    paths = [run.spec, run.outcome, run.study, run.model("trial-0001"), run.checkpoints("trial-0001"), run.ray_state]
    paths += [run.record, run.leases, run.lease(3), run.first_file, run.training_log("trial-0001"), run.report]
    assert all(path.is_relative_to(tmp_path / "results" / "mnist") for path in paths)


@pytest.mark.parametrize("path_of", [RunPaths.model, RunPaths.test_logits, RunPaths.training_log, RunPaths.checkpoints])
@pytest.mark.parametrize("name", ["../../x", "../x", "/x", "..", ".", "", "a/b", "a\0b", "trial-0001/../../x"])
def test_ids_cannot_leave_the_folder(tmp_path: Path, path_of: Callable[[RunPaths, str], Path], name: str) -> None:
    with pytest.raises(CorruptFileError, match="is not a valid name"):
        path_of(RunPaths(tmp_path), name)
