"""One owner for a run: a lease shows who the owner is and that it is at work.

The lease only decides how long a newcomer waits. What keeps a paused owner that wakes up too late from publishing
is the log itself (event_log.py): the newcomer's first event has taken the number of the owner's next file.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from mnist_ray import __version__
from mnist_ray.errors import CorruptFileError, OwnedByAnotherError, TakenOverError
from mnist_ray.record.events import RECORD_FORMAT, RunTaken
from mnist_ray.record.lease_file import Lease, read_lease
from mnist_ray.record.process import is_gone, runs_here, this_process
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import (
    StoragePath,
    children,
    exists,
    modified_at,
    remove,
    remove_leftovers,
    write_atomic,
    write_sealed_json,
)

logger = logging.getLogger(__name__)

RENEW_S = 5.0
EXPIRE_S = 60.0  # a lease this old is nobody's
SILENT_S = 2 * RENEW_S  # after this long without a renewal the user reads what the command waits for
LOOK_S = 0.5
PROBE = "probe-"  # how the names of files begin that are written to read the storage's clock


@contextlib.contextmanager
def owned(run: RunDir, when_lost: Callable[[], None]) -> Iterator[RunWriter]:
    """Own `run` while the block lasts, and yield the writer of its events.

    A lease is taken over that ended, whose process on this host is gone, or that was not renewed for EXPIRE_S.
    `when_lost` is called in a thread of its own once another process has taken the run over. Raises
    OwnedByAnotherError within two renewals if the owner is at work, TakenOverError, OSError.
    """
    _wait_until_free(run)
    taken = RunTaken(format=RECORD_FORMAT, version=__version__, host=socket.gethostname(), process=this_process())
    try:
        writer = RunWriter(run, taken)
    except TakenOverError:
        run.catch_up()
        raise OwnedByAnotherError(f"{run} was just begun by {_owner(run)}") from None
    lease = run.paths.lease(writer.fencing_token)
    is_over = threading.Event()
    renewing = threading.Thread(
        target=_keep_renewing, args=(writer, lease, is_over, when_lost), daemon=True, name="lease"
    )
    try:
        _tidy(run)
        with contextlib.suppress(FileNotFoundError):  # another process has taken the run over already, and tidied
            _renew(writer, lease, is_over=False)
        renewing.start()
        yield writer
    finally:
        is_over.set()
        if renewing.is_alive():
            renewing.join()
        writer.close()
        with contextlib.suppress(OSError, CorruptFileError):  # a full disk; the process is gone in a moment anyway
            if not writer.was_taken_over():
                _renew(writer, lease, is_over=True)


def _tidy(run: RunDir) -> None:
    """Remove what earlier owners left: files half written, probes, and all leases but the last owner's."""
    remove_leftovers(run.path)
    owners = [session.fencing_token for session in run.state.sessions]
    superseded = {run.paths.lease(fencing_token).name for fencing_token in owners[:-2]}
    for file in children(run.paths.leases):
        if file.name in superseded or file.name.startswith(PROBE):
            remove(file)


def _renew(writer: RunWriter, lease: StoragePath, is_over: bool) -> None:
    content = Lease(time.time(), writer.run.num_published, is_over)
    write_sealed_json(lease, asdict(content), "lease")


def _keep_renewing(
    writer: RunWriter, lease: StoragePath, is_over: threading.Event, when_lost: Callable[[], None]
) -> None:
    while not is_over.wait(RENEW_S):
        with contextlib.suppress(OSError, CorruptFileError):  # the owner's own writes raise them where they matter
            if writer.was_taken_over():
                when_lost()
                return
            _renew(writer, lease, is_over=False)


def _wait_until_free(run: RunDir) -> None:
    """Return once nobody owns the run. Raises OwnedByAnotherError as soon as the owner shows that it is at work."""
    session = run.state.session
    if session is None or has_ended(run):
        return
    lease = run.paths.lease(session.fencing_token)
    first = _content(lease)
    is_here = runs_here(session.owner.process)
    began, age_s = time.monotonic(), _age_s(run, lease)
    is_announced = False
    while age_s + (waited_s := time.monotonic() - began) < EXPIRE_S:
        if is_here or _content(lease) != first or run.state.fencing_token != session.fencing_token:
            raise OwnedByAnotherError(
                f"{run} is in use by {_owner(run)}: wait until it ends, or stop it and run the same command again"
            )
        if waited_s > SILENT_S and not is_announced:
            is_announced = True
            logger.info(
                "%s is in use by %s, which has given no sign of life for %.0f s: the run is taken over after %.0f s",
                *(run, _owner(run), age_s + waited_s, EXPIRE_S),
            )
        time.sleep(LOOK_S)


def has_ended(run: RunDir) -> bool:
    """Report whether certainly nobody works on the run: the last owner left it in order, or is gone from here."""
    session = run.state.session
    if session is None or is_gone(session.owner.process):
        return True
    lease = _content(run.paths.lease(session.fencing_token))
    return lease is not None and lease.is_over


def is_at_work(run: RunDir) -> bool:
    """Report whether somebody seems to work on the run; on another host by the clocks of both."""
    session = run.state.session
    if session is None or has_ended(run):
        return False
    lease = _content(run.paths.lease(session.fencing_token))
    return runs_here(session.owner.process) or (lease is not None and time.time() - lease.at < EXPIRE_S)


def _owner(run: RunDir) -> RunTaken:
    session = run.state.session
    assert session is not None
    return session.owner


def _content(lease: StoragePath) -> Lease | None:
    try:
        return read_lease(lease)
    except OSError:
        return None  # a store that is out of reach for a moment; the lease is looked at again


def _age_s(run: RunDir, lease: StoragePath) -> float:
    """Return the seconds since the owner's last sign, by the clock of the storage, which all hosts share.

    0 where a new owner has tidied meanwhile.
    """
    probe = run.paths.leases / f"{PROBE}{socket.gethostname()}-{os.getpid()}"
    try:
        write_atomic(probe, b"")
        signs = [lease, run.paths.record]  # the folder's time is that of the latest file
        return max(0.0, modified_at(probe) - max(modified_at(sign) for sign in signs if exists(sign)))
    except FileNotFoundError:
        return 0.0
    finally:
        remove(probe)
