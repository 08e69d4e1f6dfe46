"""Storage that is full, read-only or out of reach: an error that every training would meet in turn."""

import errno
from dataclasses import dataclass

from mnist_ray.storage.files import StoragePath

STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EREMOTEIO)


@dataclass(frozen=True)
class StorageFailure:
    """Error of a worker's storage, as a value that can be sent to the driver."""

    number: int  # an errno
    reason: str
    path: str

    @classmethod
    def from_error(cls, error: OSError, folder: StoragePath) -> "StorageFailure | None":
        """Describe the error, or return None if the storage is not its cause.

        folder: the one that the worker was writing to. An error of an open file names no path.
        """
        if error.errno not in STORAGE_ERRNOS:
            return None
        return cls(error.errno, error.strerror or type(error).__name__, str(error.filename or folder))

    def to_error(self) -> OSError:
        """Make an error with the same number, reason and path."""
        return OSError(self.number, self.reason, self.path)
