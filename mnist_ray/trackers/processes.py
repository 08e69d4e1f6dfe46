"""The trackers' processes, as the run's process sees them: started with the run, and ended soon after it."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import mnist_ray
from mnist_ray.config import JobSpec
from mnist_ray.errors import InterruptedRunError, SpecError, TakenOverError
from mnist_ray.record.rundir import RunDir
from mnist_ray.trackers.addresses import how_to_look, name_of
from mnist_ray.trackers.follower import REST, End

logger = logging.getLogger(__name__)

# So long a run waits at its end for what a tracker has not logged yet.
COMPLETE_S = 20.0
INCOMPLETE_S = 3.0  # whoever stops a run waits for it, and the same command logs the rest
FINISHED_S = 600.0  # of a run that was complete before: there is nothing else to do

NEEDED = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "optuna": "optuna"}
INSTALLED_BY = {"mlflow": "'mnist-ray[mlflow]'"}


def check_trackers(spec: JobSpec, run: RunDir) -> None:
    """Check that each tracker of a spec has its package and a place to log to. Raises SpecError."""
    for entry in spec.log_to:
        package = NEEDED[name_of(entry)]
        if find_spec(package) is None:
            raise SpecError(
                f"log_to {name_of(entry)} needs the package {package}, which {sys.executable} lacks: "
                f"pip install {INSTALLED_BY.get(package, package)}"
            )
        how_to_look(entry, run.paths)


@contextlib.contextmanager
def tracked(run: RunDir, spec: JobSpec, complete_s: float) -> Iterator[None]:
    """Have the spec's trackers follow the run while the block lasts, and wait for them after that.

    complete_s: so many seconds at most, where the block comes to its end. No failure of a tracker is raised; each
    tracker logs one warning at most.
    """
    trackers = []
    for entry in spec.log_to:
        logger.info("%s follows the run: %s", name_of(entry), how_to_look(entry, run.paths))
        try:
            trackers.append(TrackerProcess(entry, run))
        except OSError as error:  # no memory or no process left
            logger.warning("%s does not follow the run (%s): %s", name_of(entry), error, REST)
    end: End = "failed"
    wait_s = INCOMPLETE_S
    try:
        yield
        end, wait_s = "complete", complete_s
    except (KeyboardInterrupt, InterruptedRunError):
        end = "stopped"
        raise
    except TakenOverError:
        wait_s = 0.0  # the new owner's trackers log the rest
        raise
    finally:
        try:
            deadline = time.monotonic() + wait_s
            for tracker in trackers if wait_s else []:
                tracker.announce(end)
            for tracker in trackers if wait_s else []:
                tracker.wait_until(deadline)
        finally:
            for tracker in trackers:
                tracker.kill()


class TrackerProcess:
    """The process of one tracker, which lives no longer than this process."""

    def __init__(self, entry: str, run: RunDir) -> None:
        self._name = name_of(entry)
        self._has_warned = self._is_killed = False
        # The same package as here, and nothing from the working folder (-P).
        package = str(Path(mnist_ray.__file__).parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mnist_ray.trackers", entry, str(run)],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the run, which then announces its end here
        )
        self._listener = threading.Thread(target=self._listen, daemon=True, name=f"tracker-{self._name}")
        self._listener.start()

    def announce(self, end: End) -> None:
        """Have the tracker log what is left, and end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended before
            self._process.stdin.write(f"{end}\n")
            self._process.stdin.flush()

    def wait_until(self, deadline: float) -> None:
        """Wait until the tracker has ended. deadline: as `time.monotonic` counts."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._warn(f"{self._name} did not take all of the run in time: {REST}")

    def kill(self) -> None:
        """End the tracker at once, and pass on what it said."""
        self._is_killed = True
        self._process.kill()
        self._listener.join()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _listen(self) -> None:
        """Pass on the tracker's warning, or warn where it ended without one."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._warn(line.strip())
        if (code := self._process.wait()) and not self._is_killed:
            self._warn(f"{self._name} follows the run no more, since its process ended with code {code}: {REST}")

    def _warn(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s", message)
