"""Fetching, loading and looking for data sets by name.

The bytes that are read are the bytes that were hashed: a file is read once, unpacked in memory and compared with the
SHA-256 in the table, so that a damaged file ends in a DataError, never in a number.
"""

from collections.abc import Sequence
from pathlib import Path

from mnist_ray.data import mirrors
from mnist_ray.data.datasets import DATA_SETS, SECOND_TESTS
from mnist_ray.data.files import DataFile, how_to_provide, missing_files, near_miss
from mnist_ray.data.labelled_images import LabelledImages
from mnist_ray.errors import DataError

OWN_IMAGES = "images"  # the name of the user's own images, which are in no table


def is_present(name: str, data_dir: Path) -> bool:
    """Return whether all files of the data set are there. Raises DataError for a wrong or unreadable one."""
    return not missing_files(DATA_SETS[name].files, data_dir)


def presence(name: str, data_dir: Path, is_transposed: bool = False, test_fraction: float = 0.2) -> str:
    """Return a text for people: whether the data set is there, or near to where it belongs. Raises DataError.

    is_transposed, test_fraction: of own images.
    """
    if name == OWN_IMAGES:
        from mnist_ray.data.own_images import find_own_images  # imports Pillow, which other data do without

        return find_own_images(data_dir, is_transposed, test_fraction).description
    missing = missing_files(DATA_SETS[name].files, data_dir)
    if not missing:
        return "found"
    near = near_miss(missing[0], data_dir)
    return f"missing, downloaded when a job needs it{near and f'; {near}'}"


def load_training(name: str, data_dir: Path) -> LabelledImages:
    """Load the training half (MNIST: 60,000, digits: 1,437) from local files. Raises DataError."""
    return DATA_SETS[name].training.read(data_dir)


def load_test(name: str, data_dir: Path) -> LabelledImages:
    """Load the test half (MNIST: 10,000, digits: 360), for the test stage alone. Raises DataError.

    QMNIST: the 10,000 that match MNIST's test set, torchvision's "test10k".
    """
    return DATA_SETS[name].test.read(data_dir)


def load_second_test(name: str, data_dir: Path) -> LabelledImages:
    """Load one of SECOND_TESTS, for the test stage alone. Raises DataError."""
    return SECOND_TESTS[name].read(data_dir)


def fetch(name: str, data_dir: Path, also: Sequence[str] = (), timeout_s: float = 20.0) -> None:
    """Make sure that the data folder has the right files of a data set, and of the SECOND_TESTS in `also`.

    Files that are there are verified, which needs neither a lock nor permission to write. Missing files are
    downloaded by one process while others on the same folder wait, within the times of `download_once`.
    Raises DataError if a file is wrong (the file is left as it is), if a missing one cannot be downloaded, or if
    the folder cannot be written.
    """
    _fetch(DATA_SETS[name].files, data_dir, timeout_s)
    for second in also:
        _fetch(SECOND_TESTS[second].files, data_dir, timeout_s)


def _fetch(files: Sequence[DataFile], data_dir: Path, timeout_s: float) -> None:
    missing = missing_files(files, data_dir)
    if not missing:
        return
    from mnist_ray.data.download import Download, DownloadError, download_once  # takes 0.2 s to import

    folder = missing[0].path(data_dir).parent

    def find_missing() -> list[Download]:
        return [Download(file.name, file.sha256, mirrors.addresses(file)) for file in missing_files(files, data_dir)]

    try:
        folder.mkdir(parents=True, exist_ok=True)
        download_once(folder, find_missing, timeout_s)
    except DownloadError as error:
        raise DataError(f"{error}\n{how_to_provide(missing, data_dir)}") from error
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be written: {error.strerror} (errno {error.errno})\n"
            f"{how_to_provide(missing, data_dir)}"
        ) from error
