"""A run is refused before it starts where its storage has no space."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnist_ray.storage.disk_space import check_space
from mnist_ray.storage.files import storage_path


def test_small_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    folder = tmp_path / "not" / "there"
    check_space(folder, 1000)
    with pytest.raises(OSError, match=r"1,000 bytes are free, but the run may need 1,001.*--storage") as caught:
        check_space(folder, 1001)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(folder))
    assert not folder.parent.exists()


def test_store_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    check_space(storage_path("s3://bucket/runs"), 10**15)
