"""scikit-learn's handwritten digits, which come with the package: a data set without files or network."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mnist_ray.data.files import DataFile
from mnist_ray.data.labelled_images import LabelledImages, content_sha256
from mnist_ray.data.split import stratified_split
from mnist_ray.errors import DataError

# These define the test half, so they are no settings.
NUM_TEST = 360
TEST_SEED = 0


@dataclass(frozen=True)
class DigitsSource:
    """One half of the digits. sha256: its `content_sha256`."""

    is_test: bool
    sha256: str

    @property
    def files(self) -> tuple[DataFile, ...]:
        return ()

    def read(self, data_dir: Path) -> LabelledImages:
        """Make the examples and verify them. Raises DataError if scikit-learn's digits are not the expected ones."""
        digits = enlarged_digits()
        split = stratified_split(digits.labels, NUM_TEST, TEST_SEED)
        half = digits.take(split.validation if self.is_test else split.train)
        sha256 = content_sha256(half)
        if sha256 != self.sha256:
            raise DataError(
                f"scikit-learn's digits have SHA-256 {sha256[:12]}, expected {self.sha256[:12]}: "
                "install the version of scikit-learn in requirements.txt"
            )
        return half


def enlarged_digits() -> LabelledImages:
    """Enlarge all 1,797 digits from 8x8 of 0 to 16 to 28x28 uint8: 3x3 blocks and a border of 2.

    The arithmetic is of integers, so that every machine gets the same bytes. The file is read without scikit-learn's
    code, which takes 2 s to import. Raises DataError where scikit-learn or its file is missing.
    """
    package = find_spec("sklearn")
    folders = [Path(folder) for folder in package.submodule_search_locations or ()] if package else []
    files = [file for folder in folders if (file := folder / "datasets" / "data" / "digits.csv.gz").is_file()]
    if not files:
        raise DataError("the digits are part of scikit-learn, which is missing or incomplete: install requirements.txt")
    with gzip.open(files[0], "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float64).astype(np.int64)
    pixels, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    blocks = (pixels * 255 // 16).astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2)
    images = np.pad(blocks, ((0, 0), (2, 2), (2, 2)))
    return LabelledImages(images[:, np.newaxis], labels)
