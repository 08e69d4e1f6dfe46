"""Event files for TensorBoard: the curves of each training, and its row in the tab HPARAMS."""

from datetime import datetime
from typing import cast

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, scalar

from mnist_ray.record.rundir import RunDir
from mnist_ray.record.state import RunState, Training
from mnist_ray.record.tables import STAGES
from mnist_ray.storage.files import remove_tree
from mnist_ray.trackers.follower import End, parameters, scalars


class TensorBoardTracker:
    """The folder `tensorboard` of the run, with a folder for each training.

    It is written anew from the record in each session: a session before this one may have been killed in the middle
    of a point, and event files cannot be mended.
    """

    def __init__(self, run: RunDir) -> None:
        self._folder = run.paths.tensorboard
        self._session = f".{run.state.fencing_token:06d}"  # files of one second have different names by this
        self._writers: dict[str, EventsWriter] = {}  # of open trainings
        self._num_epochs: dict[str, int] = {}  # logged ones, by training
        self._ended: set[str] = set()
        self._has_tests = False
        remove_tree(self._folder)

    def update(self, state: RunState, end: End | None) -> None:
        """Log new trainings, epochs, ends of trainings, and the test's scores."""
        for stage in STAGES:
            for training in state.trainings(stage):
                if training.id not in self._ended:
                    self._log(training)
        if state.tested and not self._has_tests:
            self._log_tests(state)
        if end is not None:
            for writer in self._writers.values():
                writer.close()

    def _log(self, training: Training) -> None:
        writer = self._writers.get(training.id) or self._begin(training)
        is_new = False
        for metrics, at in zip(training.history, training.reported_at, strict=True):
            if metrics.epoch > self._num_epochs[training.id]:
                self._num_epochs[training.id], is_new = metrics.epoch, True
                _write_scalars(writer, scalars(metrics), metrics.epoch, at)
        if training.ended:
            _write(writer, _session_end(failed=training.status == "failed"), 0, training.ended.at)
            writer.close()
            del self._writers[training.id]
            self._ended.add(training.id)
        elif is_new:
            writer.flush()

    def _begin(self, training: Training) -> EventsWriter:
        writer = self._file(training.id)
        self._writers[training.id], self._num_epochs[training.id] = writer, 0
        # A server that has read earlier files of this training drops their points.
        start = Event(wall_time=_seconds(training.created_at), session_log=SessionLog(status=SessionLog.START))
        writer.write_event(start)
        # Without a list of columns: the server then shows those first that differ between trainings.
        _, begin, _ = hparams(parameters(training), {})
        _write(writer, begin, 0, training.created_at)
        writer.flush()
        return writer

    def _log_tests(self, state: RunState) -> None:
        assert state.tested is not None
        for training_id, tests in state.tested.scores.items():
            training = state.training(training_id)
            assert training is not None, training_id
            writer = self._file(training_id, ".test")
            for test, scored in tests.items():
                values = {f"{test}_loss": scored.score.loss, f"{test}_accuracy": scored.score.accuracy}
                _write_scalars(writer, values, training.epochs_done, state.tested.at)
            writer.close()
        self._has_tests = True

    def _file(self, training_id: str, ending: str = "") -> EventsWriter:
        folder = self._folder / training_id
        folder.mkdir(parents=True, exist_ok=True)
        return EventsWriter(str(folder / "events"), f"{self._session}{ending}")


def _write_scalars(writer: EventsWriter, values: dict[str, float], epoch: int, at: str) -> None:
    for name, value in values.items():
        _write(writer, scalar(name, value), epoch, at)


def _write(writer: EventsWriter, summary: Summary, step: int, at: str) -> None:
    writer.write_event(Event(wall_time=_seconds(at), step=step, summary=summary))


def _session_end(failed: bool) -> Summary:
    """Return the end of a row in the tab HPARAMS; tensorboardX itself knows success only."""
    *_, summary = hparams({}, {})
    status = Status.Value("STATUS_FAILURE" if failed else "STATUS_SUCCESS")
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=status))
    summary.value[0].metadata.plugin_data.content = content.SerializeToString()
    return cast(Summary, summary)


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
