"""The study of a search for Optuna's dashboard, which follows the search."""

from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState
from mnist_ray.record.study_file import StudyFile, write_study
from mnist_ray.trackers.follower import End


class OptunaTracker:
    """The run's study.sqlite3. A trial is written again when it has a new epoch or has ended."""

    def __init__(self, run: RunDir) -> None:
        """Write the study as it is on record, in place, for a dashboard that was opened in an earlier session."""
        started = run.state.started
        assert started is not None
        path = run.paths.study
        write_study(path, started.spec, run.state.trainings("search"), in_place=True)
        self._file = StudyFile(path, started.spec)
        self._path, self._inode = path, path.stat().st_ino
        self._written: dict[str, tuple[int, bool]] = {}  # by trial: its number of epochs, and whether it has ended

    def update(self, state: RunState, end: End | None) -> None:
        """Write the trials that changed. Raises OSError where the file was replaced, so that the new one is opened."""
        if self._path.stat().st_ino != self._inode:
            raise FileNotFoundError(f"{self._path} was replaced by another file")
        now = {trial.id: (trial.epochs_done, trial.ended is not None) for trial in state.trainings("search")}
        changed = [trial for trial in state.trainings("search") if self._written.get(trial.id) != now[trial.id]]
        if changed:
            self._file.put(changed)
        self._written = now
        if end is not None:
            self._file.close()
