"""The table of data sets: one entry each. `mnist_ray.data` has the functions that fetch and load them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mnist_ray.data.digits import DigitsSource
from mnist_ray.data.files import DataFile
from mnist_ray.data.idx import IdxSource
from mnist_ray.data.labelled_images import LabelledImages


class Source(Protocol):
    """Origin of the training or the test half of a data set."""

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Files that have to be there before `read`."""

    def read(self, data_dir: Path) -> LabelledImages:
        """Read the verified examples. Raises DataError."""


@dataclass(frozen=True)
class DataSet:
    """A training half, which the validation split is taken from, and a test half, read after the selection."""

    training: Source
    test: Source
    num_training: int = 60_000  # examples of the training half, for a plan that does not read them
    num_test: int = 10_000  # those of the test half
    shows_digits: bool = True  # whether an image shows one digit: one thing, in at most a few pieces

    @property
    def files(self) -> tuple[DataFile, ...]:
        return (*self.training.files, *self.test.files)


Sums = tuple[str, str | None]  # SHA-256 of the packed file, and of its content where that is known


def _mnist_like(
    torchvision_class: str, *, train_images: Sums, train_labels: Sums, test_images: Sums, test_labels: Sums
) -> DataSet:
    """Describe a data set in four files with MNIST's names."""

    def pair(prefix: str, images: Sums, labels: Sums) -> IdxSource:
        return IdxSource(
            images=DataFile(torchvision_class, f"{prefix}-images-idx3-ubyte.gz", *images),
            labels=DataFile(torchvision_class, f"{prefix}-labels-idx1-ubyte.gz", *labels),
        )

    return DataSet(
        training=pair("train", train_images, train_labels),
        test=pair("t10k", test_images, test_labels),
        shows_digits=torchvision_class == "MNIST",
    )


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

# SHA-256 of the packed files and, of MNIST, of their content. MNIST's were computed from files that have torchvision's
# MD5. The others could not be fetched on the authors' machine, so the SHA-256 of their content is unknown. Those of the
# packed files of Fashion-MNIST, KMNIST and QMNIST are published ones, equal in TensorFlow Datasets (`url_checksums`)
# and in torchvision's prototype data sets (`_CHECKSUMS`).
DATA_SETS: Mapping[str, DataSet] = {
    "mnist": _mnist_like(
        "MNIST",
        train_images=(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        train_labels=(
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        test_images=(
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        test_labels=(
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": _mnist_like(
        "FashionMNIST",
        train_images=("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", None),
        train_labels=("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", None),
        test_images=("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", None),
        test_labels=("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", None),
    ),
    "kmnist": _mnist_like(
        "KMNIST",
        train_images=("51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", None),
        train_labels=("e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17", None),
        test_images=("edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5", None),
        test_labels=("20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c", None),
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
        num_test=360,
    ),
}

# Second tests of the same digits, used for nothing else. qmnist50k: the 50,000 that MNIST's makers held back and Yadav
# & Bottou (2019) reconstructed ("Cold Case: The Lost MNIST Digits"), torchvision's "test50k".
SECOND_TESTS: Mapping[str, Source] = {
    "qmnist50k": IdxSource(QMNIST_TEST_IMAGES, QMNIST_TEST_LABELS, start=10_000),
}
