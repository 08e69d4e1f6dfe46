"""Disks that are full or read-only: trouble that no retry mends, and that would meet every training in turn."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

TROUBLES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class DiskTrouble:
    """Such an error of a worker, on its way to the driver."""

    number: int  # an errno
    path: str

    @classmethod
    def of(cls, error: OSError, folder: Path) -> "DiskTrouble | None":
        """folder: where the worker was writing; writing to an open file fails without a name."""
        if error.errno not in TROUBLES:
            return None
        return cls(error.errno, str(error.filename or folder))

    def error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number), self.path)
