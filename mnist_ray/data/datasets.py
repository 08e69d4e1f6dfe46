"""Where the images come from: verified files, an embedded set, a stratified split, pixel statistics.

A data set is an entry of `DATA_SETS`. `fetch` makes sure that its files are there, `load_training` and
`load_test` read them. What is read is what was hashed: the packed bytes are read once, compared with the
SHA-256 in the table, and unpacked in memory, so that a damaged file ends in a `DataError`, never in a number.
"""

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mnist_ray.data.download import DownloadError, Wanted, download_in_turn
from mnist_ray.errors import DataError

IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10
IDX_DTYPES: Mapping[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}

CHUNK_PIXELS = 2**20  # np.bincount copies its argument to 8 bytes a pixel


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes. The arrays may be read-only; nothing writes into them.

    images: (N, 1, 28, 28) uint8. labels: (N,) int64, 0 to 9.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "LabelledImages":
        """indices: (M,) integers -> a copy of those M examples, in that order."""
        return LabelledImages(self.images[indices], self.labels[indices])


# --- what a data set is -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataFile:
    """One packed file, where torchvision puts it, and the only content that is accepted for it.

    `torchvision_class` names both the class that knows the download addresses and the folder.
    """

    torchvision_class: str
    name: str
    sha256: str

    def path(self, data_dir: Path) -> Path:
        return data_dir / self.torchvision_class / "raw" / self.name


class Source(Protocol):
    """Where the training or the test half of a data set is read from."""

    @property
    def files(self) -> tuple[DataFile, ...]:
        """What has to be there, or to be downloaded, before `read`."""

    def read(self, data_dir: Path) -> LabelledImages:
        """The examples, verified. Raises DataError."""


@dataclass(frozen=True)
class IdxSource:
    """Examples `start` to `stop` of a pair of IDX files."""

    images: DataFile
    labels: DataFile
    start: int = 0
    stop: int | None = None

    @property
    def files(self) -> tuple[DataFile, ...]:
        return (self.images, self.labels)

    def read(self, data_dir: Path) -> LabelledImages:
        images = _read_idx(self.images, data_dir)
        classes = _first_column(_read_idx(self.labels, data_dir))
        if images.shape[1:] != IMAGE_SHAPE or images.dtype != np.uint8:
            raise DataError(f"{self.images.path(data_dir)}: {images.dtype} of {images.shape}, not 28x28 images")
        if len(classes) != len(images) or not np.isin(classes, range(NUM_CLASSES)).all():
            raise DataError(
                f"{self.labels.path(data_dir)}: {len(classes)} labels for {len(images)} images, "
                f"classes {sorted(set(classes.tolist()))[:20]}, expected 0 to {NUM_CLASSES - 1}"
            )
        chosen = slice(self.start, self.stop)
        return LabelledImages(images[chosen, np.newaxis], classes[chosen])


@dataclass(frozen=True)
class DigitsSource:
    """One half of scikit-learn's handwritten digits, which come with the package.

    `sha256` is what `content_sha256` makes of it.
    """

    is_test: bool
    sha256: str

    @property
    def files(self) -> tuple[DataFile, ...]:
        return ()

    def read(self, data_dir: Path) -> LabelledImages:
        everything = _enlarged_digits()
        split = stratified_split(everything.labels, NUM_DIGITS_TEST, DIGITS_TEST_SEED)
        digits = everything.take(split.validation if self.is_test else split.train)
        found = content_sha256(digits)
        if found != self.sha256:
            raise DataError(
                f"scikit-learn's digits have SHA-256 {found[:12]}, expected {self.sha256[:12]}: "
                "install the scikit-learn of the requirements file"
            )
        return digits


@dataclass(frozen=True)
class DataSet:
    """A training half, which the validation split is taken from, and a test half, read after the choice."""

    training: Source
    test: Source
    num_training: int = 60_000  # examples of the training half, for whoever plans without reading them

    @property
    def files(self) -> tuple[DataFile, ...]:
        return (*self.training.files, *self.test.files)


def _mnist_like(
    torchvision_class: str, *, train_images: str, train_labels: str, test_images: str, test_labels: str
) -> DataSet:
    """A data set in four files of MNIST's names, given by their SHA-256."""

    def pair(prefix: str, images_sha256: str, labels_sha256: str) -> IdxSource:
        return IdxSource(
            images=DataFile(torchvision_class, f"{prefix}-images-idx3-ubyte.gz", images_sha256),
            labels=DataFile(torchvision_class, f"{prefix}-labels-idx1-ubyte.gz", labels_sha256),
        )

    return DataSet(training=pair("train", train_images, train_labels), test=pair("t10k", test_images, test_labels))


# Constants of the embedded data set: they define its test half, so they are never the user's to choose.
NUM_DIGITS_TEST = 360
DIGITS_TEST_SEED = 0

QMNIST_TEST_IMAGES = DataFile(
    "QMNIST",
    "qmnist-test-images-idx3-ubyte.gz",
    "43fc22bf7498b8fc98de98369d72f752d0deabc280a43a7bcc364ab19e57b375",
)
QMNIST_TEST_LABELS = DataFile(
    "QMNIST",
    "qmnist-test-labels-idx2-int.gz",
    "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06",
)

# SHA-256 of the packed files. MNIST's were computed from files that have torchvision's MD5. The others could
# not be fetched on the authors' machine: those of Fashion-MNIST, KMNIST and QMNIST are published ones, equal
# in TensorFlow Datasets (`url_checksums`) and in torchvision's prototype data sets (`_CHECKSUMS`).
DATA_SETS: Mapping[str, DataSet] = {
    "mnist": _mnist_like(
        "MNIST",
        train_images="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        train_labels="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        test_images="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        test_labels="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": _mnist_like(
        "FashionMNIST",
        train_images="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        train_labels="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        test_images="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        test_labels="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "kmnist": _mnist_like(
        "KMNIST",
        train_images="51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        train_labels="e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        test_images="edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        test_labels="20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    ),
    # The test half is the first 10,000 of QMNIST's 60,000 test images: MNIST's test set made again,
    # torchvision's "test10k".
    "qmnist": DataSet(
        training=IdxSource(
            images=DataFile(
                "QMNIST",
                "qmnist-train-images-idx3-ubyte.gz",
                "9e26a7bf1683614e065d7b76460ccd52807165b3f22561fb782bd9f38c52b51d",
            ),
            labels=DataFile(
                "QMNIST",
                "qmnist-train-labels-idx2-int.gz",
                "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f",
            ),
        ),
        test=IdxSource(QMNIST_TEST_IMAGES, QMNIST_TEST_LABELS, stop=10_000),
    ),
    "digits": DataSet(
        training=DigitsSource(is_test=False, sha256="8bd073a295c3a0edf52f2315c7c28c6e0e33e6b1f90eed8d6a87841617f1431c"),
        test=DigitsSource(is_test=True, sha256="6cfa8e49b3f5c531644398848c85f52a6c35a7706548ca0f93197c4ecbe09dad"),
        num_training=1_437,
    ),
}

# Larger tests of the same digits, used for nothing else: the 50,000 that MNIST's makers held back and Yadav & Bottou
# (2019) found again ("Cold Case: The Lost MNIST Digits"), torchvision's "test50k".
SECOND_TESTS: Mapping[str, Source] = {
    "qmnist50k": IdxSource(QMNIST_TEST_IMAGES, QMNIST_TEST_LABELS, start=10_000),
}


# --- looking, fetching, reading ---------------------------------------------------------------------------


def default_data_dir() -> Path:
    """$MNIST_RAY_DATA if set, else `mnist_ray` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("MNIST_RAY_DATA"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnist_ray"


def data_dir_of(chosen: str | None) -> Path:
    """The folder that a spec or a command names, or the default one."""
    return Path(chosen).expanduser() if chosen else default_data_dir()


def is_present(name: str, data_dir: Path) -> bool:
    """Whether all files of the data set are there. Their content is not looked at, and nothing is raised."""
    # Path.is_file raises PermissionError before Python 3.14.
    return all(os.path.isfile(file.path(data_dir)) for file in DATA_SETS[name].files)  # noqa: PTH113


def load_training(name: str, data_dir: Path) -> LabelledImages:
    """The training half (MNIST: 60,000, digits: 1,437). Reads local files only; raises DataError."""
    return DATA_SETS[name].training.read(data_dir)


def load_test(name: str, data_dir: Path) -> LabelledImages:
    """The test half (MNIST: 10,000, digits: 360), for the test stage alone. Raises DataError.

    QMNIST: the 10,000 that match MNIST's test set, torchvision's "test10k".
    """
    return DATA_SETS[name].test.read(data_dir)


def load_second_test(name: str, data_dir: Path) -> LabelledImages:
    """One of SECOND_TESTS, for the test stage alone. Raises DataError."""
    return SECOND_TESTS[name].read(data_dir)


def fetch(name: str, data_dir: Path, also: Sequence[str] = (), timeout_s: float = 20.0) -> None:
    """Make sure that all files of a data set, and of these SECOND_TESTS, are in the data folder and are the right ones.

    Files that are there are verified, and need neither a lock nor permission to write. What is missing is
    downloaded by one process while the others on the folder wait, within the times of `download_in_turn`.
    Raises DataError if a file there is wrong (it is left as it is), if a missing one cannot be had, or if the
    folder cannot be written.
    """
    _fetch(DATA_SETS[name].files, data_dir, timeout_s)
    for second in also:
        _fetch(SECOND_TESTS[second].files, data_dir, timeout_s)


def _fetch(files: Sequence[DataFile], data_dir: Path, timeout_s: float) -> None:
    missing = _missing(files, data_dir)
    if not missing:
        return
    folder = missing[0].path(data_dir).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        download_in_turn(folder, lambda: [_wanted(file) for file in _missing(files, data_dir)], timeout_s)
    except DownloadError as error:
        raise DataError(f"{error}\n{_how_to_provide(missing, data_dir)}") from error
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be written: {error.strerror} (errno {error.errno})\n"
            f"{_how_to_provide(missing, data_dir)}"
        ) from error


def _how_to_provide(files: Sequence[DataFile], data_dir: Path) -> str:
    folder = files[0].path(data_dir.absolute()).parent
    return (
        f"Put {', '.join(file.name for file in files)} into {folder}, or name a data folder that has them "
        f"under {files[0].torchvision_class}/raw with --data-dir or MNIST_RAY_DATA. "
        "jobs/quickstart.yaml needs no files and no network."
    )


def _missing(files: Sequence[DataFile], data_dir: Path) -> list[DataFile]:
    """The files that are not there. Raises DataError for one that is there and wrong."""
    return [file for file in files if _verified_bytes(file, data_dir) is None]


def _wanted(file: DataFile) -> Wanted:
    return Wanted(file.name, file.sha256, lambda: _addresses(file))


def _addresses(file: DataFile) -> list[str]:
    """Where torchvision would download the file from. Its lists are used, none is kept here."""
    from torchvision import datasets  # takes 1.6 s to import

    source = getattr(datasets, file.torchvision_class)
    if isinstance(source.resources, dict):  # QMNIST: whole addresses by part; its `mirrors` are MNIST's
        listed = [address for part in source.resources.values() for address, _ in part]
        return [address for address in listed if address.rpartition("/")[2] == file.name]
    return [f"{mirror}{file.name}" for mirror in source.mirrors]


def _verified_bytes(file: DataFile, data_dir: Path) -> bytes | None:
    """The packed file, once its hash is the expected one; None if it is not there. Raises DataError."""
    path = file.path(data_dir)
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror} (errno {error.errno})\n{_how_to_provide([file], data_dir)}"
        ) from error
    found = hashlib.sha256(packed).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{path}: its {len(packed)} bytes have SHA-256 {found[:12]}, expected {file.sha256[:12]}: "
            "delete it and it will be downloaded again, or put the right file there"
        )
    return packed


def _read_idx(file: DataFile, data_dir: Path) -> npt.NDArray[Any]:
    """A verified IDX file as an array of its own shape: uint8, or big-endian int32. Raises DataError."""
    path = file.path(data_dir)
    packed = _verified_bytes(file, data_dir)
    if packed is None:
        raise DataError(f"{path} is not there.\n{_how_to_provide([file], data_dir)}")
    try:
        return _parse_idx(gzip.decompress(packed))
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is not a packed IDX file: {error}") from error


def _parse_idx(content: bytes) -> npt.NDArray[Any]:
    """IDX: two zero bytes, a type, the number of dimensions, their sizes (big-endian uint32), the values.

    Format: "the IDX file format" at the end of the original MNIST page. ValueError if the parts do not fit.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_DTYPES:
        raise ValueError(f"magic number {content[:4].hex()}")
    dtype, num_dimensions = IDX_DTYPES[content[2]], content[3]
    header_bytes = 4 + 4 * num_dimensions
    shape = struct.unpack(f">{num_dimensions}I", content[4:header_bytes])
    if len(content) != header_bytes + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes do not hold an array of {shape}")
    return np.frombuffer(content, dtype=dtype, offset=header_bytes).reshape(shape)


def _first_column(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """labels: (N,), or (N, 8) in QMNIST (class, writer, position in NIST's files ...) -> (N,) int64."""
    return (labels if labels.ndim == 1 else labels[:, 0]).astype(np.int64)


def _enlarged_digits() -> LabelledImages:
    """All 1,797 digits, 8x8 of 0 to 16 brought to 28x28 uint8: 3x3 blocks and a border of 2.

    Integers only, so that every machine gets the same bytes.
    """
    from sklearn.datasets import load_digits  # takes 2 s to import

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 // 16).astype(np.uint8)
    blocks = pixels.repeat(3, axis=1).repeat(3, axis=2)
    images = np.pad(blocks, ((0, 0), (2, 2), (2, 2)))
    return LabelledImages(images[:, np.newaxis], digits.target.astype(np.int64))


# --- splitting and measuring ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """Which training examples are trained on and which are held out.

    train, validation: sorted int64 indices. sha256: over both, one after the other, as little-endian int64.
    """

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    sha256: str


def stratified_split(labels: npt.NDArray[np.int64], num_validation: int, seed: int) -> Split:
    """Hold out `num_validation` examples, each class in proportion. labels: (N,) integers.

    Raises DataError if a side would have fewer examples than there are classes, or a class has just one.
    """
    _, class_counts = np.unique(labels, return_counts=True)
    fewest, most = len(class_counts), len(labels) - len(class_counts)
    if not 0 < fewest <= num_validation <= most or class_counts.min() < 2:
        raise DataError(
            f"num_validation is {num_validation}: of {len(labels)} examples in {fewest} classes, {fewest} to "
            f"{most} can be held out, if each class has two; choose a number between these"
        )
    # Imported here because it takes 2 s, which `--help` should not wait for.
    from sklearn.model_selection import train_test_split

    train, validation = train_test_split(
        np.arange(len(labels), dtype=np.int64), test_size=num_validation, random_state=seed, stratify=labels
    )
    train, validation = np.sort(train), np.sort(validation)
    digest = hashlib.sha256(train.astype("<i8").tobytes() + validation.astype("<i8").tobytes())
    return Split(train, validation, digest.hexdigest())


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and (population) standard deviation of all pixels, scaled from 0 .. 255 to [0, 1]."""

    mean: float
    std: float


def pixel_statistics(images: npt.NDArray[np.uint8]) -> PixelStatistics:
    """images: uint8 of any shape. Integer sums, so exact and the same everywhere. DataError if empty."""
    if images.size == 0:
        raise DataError("pixel statistics of no images: the training split is empty")
    counts = np.zeros(256, dtype=np.int64)
    pixels = images.reshape(-1)
    for start in range(0, pixels.size, CHUNK_PIXELS):
        counts += np.bincount(pixels[start : start + CHUNK_PIXELS], minlength=256)
    # Python's integers, whose divisions are rounded once.
    total = sum(value * count for value, count in enumerate(counts.tolist()))
    total_of_squares = sum(value**2 * count for value, count in enumerate(counts.tolist()))
    scale = 255 * pixels.size
    return PixelStatistics(total / scale, math.sqrt(pixels.size * total_of_squares - total**2) / scale)


def content_sha256(data: LabelledImages) -> str:
    """SHA-256 over the images' bytes, then the labels' as little-endian int64."""
    digest = hashlib.sha256(np.ascontiguousarray(data.images).data)
    digest.update(data.labels.astype("<i8").tobytes())
    return digest.hexdigest()
