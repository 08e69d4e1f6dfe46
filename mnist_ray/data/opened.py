"""A data set as a job needs it, whether one of the table or the user's own images."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mnist_ray.data.datasets import DATA_SETS
from mnist_ray.data.labelled_images import NUM_CLASSES, LabelledImages
from mnist_ray.data.loading import OWN_IMAGES, fetch, load_test, load_training
from mnist_ray.data.split import Split, split_by_part, stratified_split
from mnist_ray.errors import DataError

if TYPE_CHECKING:
    from mnist_ray.data.own_images import OwnImages

logger = logging.getLogger(__name__)

MOST_VALIDATION = 5000  # of own images, where a spec does not say how many


@dataclass(frozen=True, eq=False)
class OpenedData:
    """A data set whose training half is read, and whose test half is not."""

    training: LabelledImages
    load_test: Callable[[], LabelledImages]
    classes: tuple[str, ...] = ()  # their names; empty: the digits 0 to 9
    validation: npt.NDArray[np.int64] | None = None  # the indices of a given validation part
    test_sha256: str | None = None  # of own images
    files: bytes | None = None  # of own images: a line a file, for `changed_files`

    @property
    def num_classes(self) -> int:
        return len(self.classes) or NUM_CLASSES

    def split(self, num_validation: int | None, seed: int) -> Split:
        """Split the training half: by its validation part, or stratified by lot. Raises DataError.

        num_validation: of the spec; None: as `SizesOfData.num_held_out` says.
        """
        given = None if self.validation is None else len(self.validation)
        num_held_out = SizesOfData(len(self.training), 0, self.num_classes, given).num_held_out(num_validation)
        if self.validation is not None:
            return split_by_part(len(self.training), self.validation)
        return stratified_split(self.training.labels, num_held_out, seed)


@dataclass(frozen=True)
class SizesOfData:
    """The sizes of a data set, known before it is read."""

    num_training: int  # those for validation included
    num_test: int
    num_classes: int
    num_validation: int | None  # of a given validation part

    def num_held_out(self, num_validation: int | None) -> int:
        """Return the size of the validation split: the given part's, what the spec says, or a tenth up to 5,000.

        num_validation: of the spec. Raises DataError where there are both a part and a number.
        """
        if self.num_validation is None:
            return num_validation or max(self.num_classes, min(MOST_VALIDATION, self.num_training // 10))
        if num_validation is not None:
            raise DataError(
                f"data.num_validation is {num_validation}, and the images have a validation part of "
                f"{self.num_validation:,}: leave data.num_validation out, or the part"
            )
        return self.num_validation


def open_data(
    name: str,
    data_dir: Path,
    also: Sequence[str] = (),
    is_transposed: bool = False,
    test_fraction: float = 0.2,
    on_start: Callable[[int], object] = lambda _: None,
    on_read: Callable[[int], object] = lambda _: None,
) -> OpenedData:
    """Download what is missing and read the training half. Raises DataError.

    also: SECOND_TESTS to download. is_transposed, test_fraction: of own images. on_start: called with the number of own
    images before they are read. on_read: called with how many of them are read.
    """
    if name != OWN_IMAGES:
        fetch(name, data_dir, also)
        return OpenedData(load_training(name, data_dir), lambda: load_test(name, data_dir))
    own = _own_images(data_dir, is_transposed, test_fraction)
    logger.info("data: %s: %s", data_dir, own.description)
    on_start(own.num_training + own.num_test)
    loaded = own.load(on_read)
    return OpenedData(loaded.training, own.load_test, own.classes, loaded.validation, loaded.test_sha256, loaded.files)


def load_test_half(
    name: str, data_dir: Path, is_transposed: bool = False, test_fraction: float = 0.2
) -> LabelledImages:
    """Download the test half if it is missing and read it. Raises DataError."""
    if name != OWN_IMAGES:
        fetch(name, data_dir)
        return load_test(name, data_dir)
    return _own_images(data_dir, is_transposed, test_fraction).load_test()


def sizes_of_data(name: str, data_dir: Path, is_transposed: bool = False, test_fraction: float = 0.2) -> SizesOfData:
    """Return the sizes of a data set without reading images. Raises DataError for own images in no known form."""
    if name != OWN_IMAGES:
        return SizesOfData(DATA_SETS[name].num_training, DATA_SETS[name].num_test, NUM_CLASSES, None)
    own = _own_images(data_dir, is_transposed, test_fraction)
    return SizesOfData(own.num_training, own.num_test, len(own.classes), own.num_validation)


def _own_images(data_dir: Path, is_transposed: bool, test_fraction: float) -> "OwnImages":
    from mnist_ray.data.own_images import find_own_images  # imports Pillow, which other data do without

    return find_own_images(data_dir, is_transposed, test_fraction)
