"""The data of a run that is on record, where they are still at hand."""

from pathlib import Path

from mnist_ray import data
from mnist_ray.errors import DataError
from mnist_ray.pipeline.stages import LoadedData
from mnist_ray.record.rundir import RunDir


def load_data_of(run: RunDir, data_dir: Path | None = None) -> LoadedData:
    """Load the data that a started run was made from, without a download. data_dir: where they lie, if not on record.

    Raises DataError where they are missing, damaged or others.
    """
    started = run.state.started
    assert started is not None
    spec = started.spec
    folder = data_dir or data.data_dir_of(spec.data.dir)
    if spec.data.name != data.OWN_IMAGES and not data.is_present(spec.data.name, folder):
        raise DataError(f"the data set {spec.data.name} is not in {folder}")
    changes = {
        "data": spec.data.model_copy(update={"dir": str(folder)}),
        "test": spec.test.model_copy(update={"also": ()}),
    }
    loaded = LoadedData(spec.model_copy(update=changes))
    if loaded.facts != started.data:
        raise DataError(f"the data set {spec.data.name} in {folder} is not the one of the run")
    return loaded
