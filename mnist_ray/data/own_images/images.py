"""The images of a folder as a data set: its classes, its parts, and what identifies it."""

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnist_ray.data.labelled_images import LabelledImages, content_sha256
from mnist_ray.data.own_images.forms import BadFiles, Form, Label, OnRead, PartName
from mnist_ray.data.split import stratified_split
from mnist_ray.errors import DataError
from mnist_ray.shown import shown

TEST_SEED = 0  # it defines the test part, so it is no setting
MOST_CLASSES = 1000
REPORT_EVERY = 100  # images
HASH_LETTERS = 16  # of a file's SHA-256 in the list of files

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a job needs of the images before its test."""

    training: LabelledImages  # with those of the validation part at the end, if the folder has one
    validation: Indices | None  # the indices of a validation part; None where the folder has none
    test_sha256: str  # content_sha256 of the test part
    files: bytes  # a line a file: the beginning of its SHA-256, and its path


@dataclass(frozen=True, eq=False)
class OwnImages:
    """A folder's images, whose labels are known. Nothing is read before `load`."""

    form: Form
    folder: Path
    classes: tuple[str, ...]
    training: dict[PartName, Indices]  # the numbers of a part's images that are trained on or judge trials
    test: tuple[PartName, Indices]  # the part that holds the test images, and their numbers
    numbers: dict[PartName, Indices]  # the class of each image of a part, (N,)

    @classmethod
    def of(cls, folder: Path, form: Form, test_fraction: float) -> "OwnImages":
        """Check the labels and set the test part apart. Raises DataError."""
        labels = form.labels
        counts = Counter(label for part, values in labels.items() if part != "test" for label in values)
        classes = ordered_classes(list(counts))
        _check_classes(
            folder, classes, counts, labels.get("test", ()), max(2, 3 - len(labels.keys() & {"val", "test"}))
        )
        number_of = {label: number for number, label in enumerate(classes)}
        numbers = {
            part: np.array([number_of[each] for each in values], dtype=np.int64) for part, values in labels.items()
        }
        whole = {part: np.arange(len(values)) for part, values in labels.items()}
        if "test" in labels:
            test: tuple[PartName, Indices] = ("test", whole.pop("test"))
        else:
            num_test = max(len(classes), math.ceil(test_fraction * len(numbers["train"])))
            split = stratified_split(numbers["train"], num_test, TEST_SEED)
            whole["train"], test = split.train, ("train", split.validation)
        return cls(form, folder, tuple(shown(str(label)) for label in classes), whole, test, numbers)

    @property
    def num_training(self) -> int:
        """The images that are trained on or judge trials."""
        return sum(map(len, self.training.values()))

    @property
    def num_test(self) -> int:
        return len(self.test[1])

    @property
    def num_validation(self) -> int | None:
        """The images of the folder's validation part; None where it has none."""
        return len(self.training["val"]) if "val" in self.training else None

    @property
    def description(self) -> str:
        """The form and the sizes, in words."""
        part, _ = self.test
        origin = "" if part == "test" else " set apart from train"
        validation = f" ({self.num_validation:,} of them for validation)" if self.num_validation else ""
        return (
            f"{self.form.name}: {self.num_training:,} images for training{validation} and {self.num_test:,} for the "
            f"test{origin}, in {len(self.classes)} classes{self._unused_labels}"
        )

    @property
    def _unused_labels(self) -> str:
        """The numbers between the labels that no image has, in words; empty where labels are names."""
        if not all(isinstance(label, int) for label in self.form.labels["train"][:1]):
            return ""
        used = {int(label) for label in self.classes}
        every = range(min(0, *used), max(used))  # which may be long: a label can be any number
        unused = [str(number) for number in itertools.islice((each for each in every if each not in used), 11)]
        shown_ones = ", ".join(unused[:10]) + (" ..." if len(unused) > 10 else "")
        return f"; no image has the labels {shown_ones}, which are dropped" if unused else ""

    def load(self, on_read: OnRead = lambda _: None) -> Loaded:
        """Read all images, and forget those of the test. Raises DataError."""
        numbers_read = itertools.count(1)  # which threads may share

        def count() -> None:
            number = next(numbers_read)
            if number % REPORT_EVERY == 0 or number == self.num_training + self.num_test:
                on_read(number)

        test_part, test_indices = self.test
        pieces: list[LabelledImages] = []
        test_sha256 = ""
        bad = BadFiles({})
        for part, numbers in self.numbers.items():
            images = self.form.read(part, count, bad)
            if part == test_part:
                test_sha256 = content_sha256(self._labelled(images, numbers, test_indices))
            if part in self.training:
                pieces.append(self._labelled(images, numbers, self.training[part]))
            del images
        bad.raise_if_any(self.folder)
        validation = None
        if "val" in self.training:
            first = len(self.training["train"])
            validation = np.arange(first, first + len(self.training["val"]))
        training = LabelledImages(
            np.concatenate([piece.images for piece in pieces]) if len(pieces) > 1 else pieces[0].images,
            np.concatenate([piece.labels for piece in pieces]),
        )
        return Loaded(training, validation, test_sha256, self._list_of_files())

    def load_test(self) -> LabelledImages:
        """Read the images of the test. Raises DataError."""
        part, indices = self.test
        bad = BadFiles({})
        images = self.form.read(part, lambda: None, bad)
        bad.raise_if_any(self.folder)
        return self._labelled(images, self.numbers[part], indices)

    @staticmethod
    def _labelled(images: npt.NDArray[np.uint8], numbers: Indices, taken: Indices) -> LabelledImages:
        if len(taken) == len(numbers):
            return LabelledImages(images, numbers)
        return LabelledImages(images, numbers).take(taken)

    def _list_of_files(self) -> bytes:
        def line(path: Path) -> str:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return f"{digest[:HASH_LETTERS]} {path.relative_to(self.folder).as_posix()}\n"

        try:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                lines = list(threads.map(line, self.form.files))
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}: it changed while it was read") from None
        return "".join(sorted(lines, key=lambda line: line[HASH_LETTERS:])).encode()


def changed_files(before: bytes, now: bytes) -> str:
    """Compare two lists of files and say how many were added, are gone and have changed."""
    then_by_path, by_path = (
        {line[HASH_LETTERS + 1 :]: line[:HASH_LETTERS] for line in files.decode().splitlines()}
        for files in (before, now)
    )
    num_changed = sum(by_path[path] != digest for path, digest in then_by_path.items() if path in by_path)
    num_added, num_gone = len(by_path.keys() - then_by_path.keys()), len(then_by_path.keys() - by_path.keys())
    return f"{num_added} files added, {num_gone} gone, {num_changed} changed"


def ordered_classes(labels: Sequence[Label]) -> list[Label]:
    """Return classes in the order of the network's outputs: by number where all are numbers, by name otherwise."""
    are_numbers = all(isinstance(label, int) or (label.isdecimal() and label.isascii()) for label in labels)
    return sorted(labels, key=lambda label: (int(label), str(label)) if are_numbers else str(label))


def _check_classes(
    folder: Path, classes: Sequence[Label], counts: Counter[Label], test_labels: Sequence[Label], fewest: int
) -> None:
    """fewest: the images that a class needs, one for each part that there is or that is set apart."""
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(f"data.dir {folder} has {len(classes)} classes, and 2 to {MOST_CLASSES} are needed")
    few = [f"{label} ({counts[label]})" for label in classes if counts[label] < fewest]
    if few:
        raise DataError(
            f"data.dir {folder}: {len(few)} classes have fewer than {fewest} images, for training, validation and "
            f"test: {', '.join(few[:10])}: add images, or remove the class"
        )
    if unknown := sorted(map(str, set(test_labels) - set(classes))):
        raise DataError(
            f"data.dir {folder}: {len(unknown)} classes of its test part have no training images: "
            f"{', '.join(unknown[:10])}: add some, or remove the class"
        )
