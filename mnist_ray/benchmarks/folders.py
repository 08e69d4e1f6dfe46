"""Folders that a benchmark needs for a while."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder for Ray's own files, for a block. Sockets lie below it, and their paths cannot be long."""
    with tempfile.TemporaryDirectory(prefix="mr-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
