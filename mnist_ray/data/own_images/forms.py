"""The interface of the three forms in which a folder can hold images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from mnist_ray.errors import DataError

PartName = Literal["train", "val", "test"]
Label = int | str  # as the files have it
OnRead = Callable[[int], object]  # called now and then with the number of images read so far, of all parts

NUM_SHOWN = 10  # bad files that a message names


@dataclass
class BadFiles:
    """What is wrong with files, gathered so that one message names them all."""

    reasons: dict[str, str]  # by path

    def raise_if_any(self, folder: Path) -> None:
        """Raise DataError with the first bad files and their number."""
        if not self.reasons:
            return
        first = [f"  {path}: {reason}" for path, reason in sorted(self.reasons.items())[:NUM_SHOWN]]
        more = len(self.reasons) - len(first)
        raise DataError(
            "\n".join(
                [
                    f"data.dir {folder}: {len(self.reasons)} of its files cannot be used: repair or remove them",
                    *first,
                    *([f"  and {more} more"] if more else []),
                ]
            )
        )


class Form(Protocol):
    """Images in one of the forms: the parts that there are, with each image's label."""

    @property
    def name(self) -> str:
        """The form in words, with what it was recognised by."""

    @property
    def labels(self) -> Mapping[PartName, Sequence[Label]]:
        """The labels of each part, known before an image is read."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that the images come from."""

    def read(self, part: PartName, on_read: Callable[[], object], bad: BadFiles) -> npt.NDArray[np.uint8]:
        """Read a part's images in the order of its labels -> (N, 1, 28, 28). Raises DataError.

        on_read: called for each image. bad: gets the files that are no images, whose place in the array stays unset.
        """
