"""Free space of the disk that a run is written to."""

import errno
import shutil
from pathlib import Path

from mnist_ray.storage.files import StoragePath


def check_space(folder: StoragePath, num_bytes: int) -> None:
    """Check that the disk of `folder`, which need not exist yet, has `num_bytes` free.

    An object store has no limit. Raises OSError (ENOSPC) with both numbers.
    """
    if not isinstance(folder, Path):
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        remedy = "free some space, or choose another folder (--storage)"
        raise OSError(
            errno.ENOSPC, f"{free:,} bytes are free, but the run may need {num_bytes:,}: {remedy}", str(folder)
        )
