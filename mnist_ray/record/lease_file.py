"""The content of an owner's lease, written by lease.py and looked at by every reader."""

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from mnist_ray.errors import CorruptFileError
from mnist_ray.storage.files import StoragePath, read_sealed_json


@dataclass(frozen=True)
class Lease:
    """The content of an owner's lease."""

    at: float  # seconds since 1970, by the owner's clock; only shown
    num_events: int  # in the log when the lease was renewed
    is_over: bool  # the owner left the run in order


_LEASE = TypeAdapter(Lease)


def read_lease(path: StoragePath) -> Lease | None:
    """Return the lease in a file; None where there is none, or what is there is no lease. Raises OSError."""
    try:
        lease: Lease = _LEASE.validate_python(read_sealed_json(path))
        return lease
    except (FileNotFoundError, CorruptFileError, ValidationError):
        return None
