"""One owner for a run: a lease says who it is and that it lives.

The lease only decides how long a newcomer waits. What keeps a paused owner that wakes up too late from publishing
is the log itself (see log.py): the newcomer's first event has taken the number that it would write next.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mnist_ray import __version__
from mnist_ray.errors import CorruptFileError, OwnedByAnotherError, TakenOverError
from mnist_ray.record.process import is_gone, place, this_process
from mnist_ray.record.rundir import RunDir, owner_line
from mnist_ray.storage.files import (
    StoragePath,
    children,
    exists,
    modified_at,
    read_sealed_json,
    remove,
    remove_leftovers,
    write_atomic,
    write_sealed_json,
)

RENEW_S = 5.0
EXPIRE_S = 60.0  # a lease this old is nobody's
SILENT_S = 2 * RENEW_S  # after this long without a sign the user is told what is waited for
LOOK_S = 0.5


@contextlib.contextmanager
def owned(run: RunDir, note: Callable[[str], None], when_lost: Callable[[], None]) -> Iterator[None]:
    """Own `run` while the block lasts.

    A lease that ended, whose process on this host is gone, or that was not renewed for EXPIRE_S is taken over.
    note: told what is waited for. when_lost: called in a thread of its own once another process has taken the run
    over. Raises OwnedByAnotherError within two renewals if its owner lives, TakenOverError, OSError.
    """
    _wait_until_free(run, note)
    try:
        generation = run.take({"host": socket.gethostname(), **this_process(), "version": __version__})
    except TakenOverError:
        raise OwnedByAnotherError(f"{run.path} was just begun by {_owner_line(run)}") from None
    _tidy(run)
    lease = run.lease(generation)
    _renew(run, lease, is_over=False)
    is_over = threading.Event()
    renewing = threading.Thread(target=_keep_renewing, args=(run, lease, is_over, when_lost), daemon=True, name="lease")
    renewing.start()
    try:
        yield
    finally:
        is_over.set()
        renewing.join()
        if not run.was_taken_over():
            with contextlib.suppress(OSError):  # a full disk; the process is gone in a moment anyway
                _renew(run, lease, is_over=True)


def _tidy(run: RunDir) -> None:
    """Remove what owners before this one left: files half written, and leases but the last owner's."""
    remove_leftovers(run.path)
    leases = sorted(children(run.leases, "*.json"), key=lambda lease: lease.name)
    for lease in leases[:-1]:
        remove(lease)


def _renew(run: RunDir, lease: StoragePath, is_over: bool) -> None:
    body = {"at": time.time(), "num_events": run.num_published, "is_over": is_over}
    write_sealed_json(lease, body, "lease")


def _keep_renewing(run: RunDir, lease: StoragePath, is_over: threading.Event, when_lost: Callable[[], None]) -> None:
    while not is_over.wait(RENEW_S):
        if run.was_taken_over():
            when_lost()
            return
        with contextlib.suppress(OSError):  # the owner's own writes say it better
            _renew(run, lease, is_over=False)


def _wait_until_free(run: RunDir, note: Callable[[str], None]) -> None:
    """Return once nobody owns the run. Raises OwnedByAnotherError as soon as its owner shows that it lives."""
    owner = run.owner
    if owner is None or has_ended(run):
        return
    lease = run.lease(owner["event"])
    first = _content(lease)
    is_here = place().items() <= owner.items()
    began, age_s = time.monotonic(), _age_s(run, lease)
    told = False
    while age_s + (waited_s := time.monotonic() - began) < EXPIRE_S:
        if is_here or _content(lease) != first or run.owner != owner:
            raise OwnedByAnotherError(
                f"{run.path} belongs to {_owner_line(run)}: wait for it, or end it and run the same command again"
            )
        if waited_s > SILENT_S and not told:
            told = True
            note(
                f"{run.path} belongs to {_owner_line(run)}, silent for {age_s + waited_s:.0f} s: it is taken over "
                f"after {EXPIRE_S:.0f} s"
            )
        time.sleep(LOOK_S)


def has_ended(run: RunDir) -> bool:
    """Whether it is certain that nobody works on the run: its last owner left it in order, or is gone from here."""
    owner = run.owner
    if owner is None or is_gone(owner):
        return True
    lease = _content(run.lease(owner["event"]))
    return lease is not None and lease["is_over"]


def _owner_line(run: RunDir) -> str:
    owner = run.owner
    assert owner is not None
    return owner_line(owner)


def _content(lease: StoragePath) -> Mapping[str, Any] | None:
    try:
        body: Mapping[str, Any] = read_sealed_json(lease)
    except (OSError, CorruptFileError):
        return None
    return body


def _age_s(run: RunDir, lease: StoragePath) -> float:
    """Seconds since the last sign of the owner, by the clock of the storage, which all hosts share."""
    probe = run.leases / f"probe-{socket.gethostname()}-{os.getpid()}"
    write_atomic(probe, b"")
    try:
        signs = [lease, run.record]  # the folder's time is that of the latest event
        return max(0.0, modified_at(probe) - max(modified_at(sign) for sign in signs if exists(sign)))
    finally:
        remove(probe)
