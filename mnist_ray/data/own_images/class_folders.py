"""Images in class folders, the layout of torchvision's ImageFolder: FOLDER/train/CLASS/*.png."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnist_ray.data.images import MOST_BYTES
from mnist_ray.data.labelled_images import IMAGE_SHAPE
from mnist_ray.data.own_images.forms import BadFiles, Label, PartName
from mnist_ray.data.own_images.grey import decoded
from mnist_ray.errors import DataError
from mnist_ray.storage.files import read_bounded

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"])
FOLDERS: Mapping[PartName, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
NUM_TOGETHER = 1000  # images that are handed to the threads at a time


@dataclass(frozen=True)
class ClassFolders:
    """A folder `train`, and perhaps `val` and `test`, each with a folder for each class."""

    folder: Path
    images: Mapping[PartName, Sequence[Path]]  # ordered by file name across classes
    num_left_out: int  # files that no name of an image

    @classmethod
    def found_in(cls, folder: Path) -> "ClassFolders | None":
        """Return the images of a folder's parts; None where it has no folder `train`. Raises DataError."""
        parts = {part: place for part, names in FOLDERS.items() if (place := _part_folder(folder, names)) is not None}
        if "train" not in parts:
            return None
        images: dict[PartName, list[Path]] = {}
        num_left_out = 0
        empty = BadFiles({})
        for part, place in parts.items():
            images[part] = []
            for class_folder in sorted(each for each in place.iterdir() if each.is_dir() and each.name[0] != "."):
                found = list(_files_below(class_folder))
                of_class = [path for path in found if path.suffix.lower() in SUFFIXES]
                num_left_out += len(found) - len(of_class)
                images[part] += of_class
                if not of_class:
                    empty.reasons[str(class_folder)] = (
                        f"a class without images (files ending in {', '.join(sorted(SUFFIXES))})"
                    )
            num_left_out += sum(each.is_file() and each.name[0] != "." for each in place.iterdir())
        empty.raise_if_any(folder)
        ordered = {
            part: sorted(paths, key=lambda path: (_by_number(path.name), path)) for part, paths in images.items()
        }
        return cls(folder, ordered, num_left_out)

    @property
    def name(self) -> str:
        left_out = (
            f"; {self.num_left_out} files that are no images by their names are left out" if self.num_left_out else ""
        )
        return f"class folders below {', '.join(map(str, self._part_folders))}{left_out}"

    @property
    def _part_folders(self) -> list[str]:
        return [f"{part}/" for part in self.images]

    @property
    def labels(self) -> Mapping[PartName, Sequence[Label]]:
        return {part: [self._class_of(path) for path in paths] for part, paths in self.images.items()}

    def _class_of(self, path: Path) -> str:
        return path.relative_to(self.folder).parts[1]

    @property
    def files(self) -> Sequence[Path]:
        return [path for paths in self.images.values() for path in paths]

    def read(self, part: PartName, on_read: Callable[[], object], bad: BadFiles) -> npt.NDArray[np.uint8]:
        """Read a part's images with a thread for each processor: decoders work outside of Python's lock."""
        paths = self.images[part]
        images = np.empty((len(paths), 1, *IMAGE_SHAPE), dtype=np.uint8)

        def read_one(number: int) -> None:
            path = paths[number]
            try:
                images[number, 0] = decoded(read_bounded(path, MOST_BYTES))
            except OSError as error:
                bad.reasons[str(path)] = error.strerror or str(error)
            except ValueError as error:
                bad.reasons[str(path)] = str(error)
            on_read()

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for first in range(0, len(paths), NUM_TOGETHER):
                list(threads.map(read_one, range(first, min(first + NUM_TOGETHER, len(paths)))))
        return images


def class_folders_without_train(folder: Path) -> list[str]:
    """Return the names of folders that hold images directly: classes that no folder `train` is around."""
    return [
        each.name
        for each in sorted(folder.iterdir())
        if each.is_dir() and any(file.suffix.lower() in SUFFIXES for file in each.iterdir())
    ]


def _part_folder(folder: Path, names: Sequence[str]) -> Path | None:
    found = [folder / name for name in names if (folder / name).is_dir()]
    if len(found) > 1:
        raise DataError(f"data.dir {folder}: {' and '.join(path.name for path in found)} are the same part: keep one")
    return found[0] if found else None


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (Path(place, name) for name in names if name[0] != ".")


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
