"""Storage that is full, read-only or out of reach: trouble that would meet every training in turn."""

import errno
from dataclasses import dataclass

from mnist_ray.storage.files import Place

TROUBLES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EREMOTEIO)


@dataclass(frozen=True)
class DiskTrouble:
    """Such an error of a worker, on its way to the driver."""

    number: int  # an errno
    reason: str
    path: str

    @classmethod
    def of(cls, error: OSError, folder: Place) -> "DiskTrouble | None":
        """folder: where the worker was writing; writing to an open file fails without a name."""
        if error.errno not in TROUBLES:
            return None
        return cls(error.errno, error.strerror or type(error).__name__, str(error.filename or folder))

    def error(self) -> OSError:
        return OSError(self.number, self.reason, self.path)
