"""Where everything lies in a run's folder.

    record/000001.json, 000002.json, ...    the event log (event_log.py)
    record/blobs/<sha256>                   trained models, test logits
    leases/                                 the owners' leases
    checkpoints/                            of trainings that have not ended

Everything else is exported from the record and can be made again: tables, study, report, copies of models and logs.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import cast

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.event_log import REMEDY
from mnist_ray.storage.files import StoragePath, children, first_link

TRAINING_ID = re.compile(r"[a-z]+-[a-z0-9-]+")


class RunPaths:
    """The paths of one run's files."""

    def __init__(self, folder: StoragePath) -> None:
        # In a store it is a UPath, which is joined and named like a Path; storage/files.py does everything else.
        self.folder = cast(Path, folder.absolute())
        self.record = self.folder / "record"
        self.first_file = self.record / "000001.json"  # there once somebody owned the run
        self.leases = self.folder / "leases"
        self.all_checkpoints = self.folder / "checkpoints"
        self.spec = self.folder / "spec.yaml"
        self.selected_spec = self.folder / "best.yaml"
        self.results_csv = self.folder / "results.csv"
        self.results_parquet = self.folder / "results.parquet"
        self.results_markdown = self.folder / "results.md"
        self.history_parquet = self.folder / "history.parquet"
        self.outcome = self.folder / "result.json"
        self.study = self.folder / "study.sqlite3"
        self.tensorboard = self.folder / "tensorboard"
        self.report = self.folder / "report.html"
        self.model_folder = self.folder / "model"
        self.retraining_log = self.folder / "logs" / "retrain.log"

    @property
    def _exported(self) -> list[Path]:
        """Everything but the record, leases, checkpoints and Ray's own files."""
        files = [self.spec, self.selected_spec, self.results_csv, self.results_parquet, self.results_markdown]
        files += [self.history_parquet, self.outcome, self.study, self.report, self.tensorboard]
        return [*files, self.model_folder, self.folder / "models", self.retraining_log.parent]

    def check_links(self) -> None:
        """Check that no link stands where something of the run belongs: it may lead to somebody else's files.

        The folder itself may be a link. Raises CorruptFileError that names the link.
        """
        for place in (self.record, self.leases, self.all_checkpoints, *self._exported):
            if (link := first_link(place)) is not None:
                raise CorruptFileError(
                    f"{link} is a symbolic link, which a run's folder may not contain: put the files themselves "
                    "there, or remove it"
                )

    def foreign_file(self) -> Path | None:
        """Return something that stands where a new run would write or remove files; None where nothing does."""
        is_on_disk = isinstance(self.folder, Path)
        if not is_on_disk:
            return None
        places = [self.all_checkpoints, self.ray_state, *self._exported]
        return next((place for place in places if place.is_file() or any(children(place))), None)

    @property
    def ray_state(self) -> Path:
        """The folder for files of Ray itself, on a disk; nothing is read from there."""
        is_on_disk = isinstance(self.folder, Path)
        return (self.folder if is_on_disk else Path(tempfile.gettempdir(), f"mnist-ray-{os.getpid()}")) / "ray"

    def model(self, training_id: str) -> Path:
        """The copy for people; programs read the blob."""
        return self.folder / "models" / f"{checked_id(training_id)}.safetensors"

    def test_logits(self, training_id: str) -> Path:
        return self.folder / "models" / f"{checked_id(training_id)}.test_logits.npy"

    def training_log(self, training_id: str) -> Path:
        return self.folder / "logs" / f"{checked_id(training_id)}.log"

    def checkpoints(self, training_id: str) -> Path:
        """The folder of a training; below it each owner has a folder of its own, named by its fencing token."""
        return self.all_checkpoints / checked_id(training_id)

    def lease(self, fencing_token: int) -> Path:
        return self.leases / f"{fencing_token:06d}.json"


def checked_id(training_id: str) -> str:
    """Return a training's id, which becomes part of a path. Raises CorruptFileError for one that leads elsewhere."""
    if not TRAINING_ID.fullmatch(training_id):
        raise CorruptFileError(f"the record names a training {training_id!r}, which is not a valid name: {REMEDY}")
    return training_id
