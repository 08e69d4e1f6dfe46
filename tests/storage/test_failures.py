"""An error of the storage is described, sent and raised again."""

import errno
import pickle
from pathlib import Path

import pytest

from mnist_ray.storage.failures import StorageFailure
from mnist_ray.storage.object_stores import OutOfReachError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/runs/state"),
        OSError(errno.EROFS, "Read-only file system"),
        OutOfReachError(errno.EREMOTEIO, "no such bucket", "s3://bucket"),
    ],
)
def test_storage_error_survives_sending(error: OSError) -> None:
    failure = pickle.loads(pickle.dumps(StorageFailure.from_error(error, Path("/runs"))))
    again = failure.to_error()
    assert (again.errno, again.strerror) == (error.errno, error.strerror)
    assert again.filename == (error.filename or "/runs")


def test_other_errors_are_no_storage_failure() -> None:
    assert StorageFailure.from_error(FileNotFoundError(errno.ENOENT, "No such file", "/data"), Path("/runs")) is None
