"""A user's own images: the three forms, what is read from them, and what bad input gets."""

import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mnist_ray import data
from mnist_ray.data.own_images import find_own_images, in_network_form
from mnist_ray.data.own_images.images import changed_files, ordered_classes
from mnist_ray.errors import DataError

HALVES = {"train": "train", "test": "t10k"}


def in_class_folders(folder: Path, part: str, examples: data.LabelledImages) -> None:
    for number, (image, label) in enumerate(zip(examples.images, examples.labels, strict=True)):
        place = folder / part / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{number}.png")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def in_idx_files(folder: Path, part: str, examples: data.LabelledImages) -> None:
    folder.mkdir(exist_ok=True)
    packed = gzip.compress(idx(examples.images[:, 0]), compresslevel=1)
    (folder / f"{HALVES[part]}-images-idx3-ubyte.gz").write_bytes(packed)
    (folder / f"{HALVES[part]}-labels-idx1-ubyte").write_bytes(idx(examples.labels))


def in_archive(folder: Path, part: str, examples: data.LabelledImages) -> None:
    folder.mkdir(exist_ok=True)
    known = dict(np.load(folder / "digits.npz")) if (folder / "digits.npz").exists() else {}
    known |= {f"x_{part}": examples.images[:, 0], f"y_{part}": examples.labels}
    np.savez_compressed(folder / "digits.npz", **known)


FORMS = {"class folders": in_class_folders, "IDX files": in_idx_files, "archive": in_archive}


@pytest.fixture(scope="module")
def digits() -> dict[str, data.LabelledImages]:
    nowhere = Path()
    return {"train": data.load_training("digits", nowhere), "test": data.load_test("digits", nowhere)}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_bytes(form: str, tmp_path: Path, digits: dict[str, data.LabelledImages]) -> None:
    for part, examples in digits.items():
        FORMS[form](tmp_path / "images", part, examples)
    own = find_own_images(tmp_path / "images")
    loaded = own.load()
    assert data.content_sha256(loaded.training) == data.content_sha256(digits["train"])
    assert loaded.test_sha256 == data.content_sha256(digits["test"]) == data.content_sha256(own.load_test())
    assert own.classes == tuple("0123456789")
    assert (own.num_training, own.num_test, own.num_validation) == (1437, 360, None)


def test_test_part_is_set_apart(tmp_path: Path, digits: dict[str, data.LabelledImages]) -> None:
    whole = data.digits.enlarged_digits()
    in_archive(tmp_path, "train", whole)
    own = find_own_images(tmp_path)
    # A seeded, stratified fifth: of the digits, the half that the package itself sets apart.
    assert data.content_sha256(own.load_test()) == data.content_sha256(digits["test"])
    assert data.content_sha256(own.load().training) == data.content_sha256(digits["train"])
    assert find_own_images(tmp_path, test_fraction=0.5).num_test == 899


def test_validation_part_is_the_split(tmp_path: Path) -> None:
    values = np.arange(12 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(12, 28, 28)
    labels = np.tile([[0], [1]], (6, 1))  # (12, 1), as MedMNIST has them
    parts = {"train": slice(0, 6), "val": slice(6, 8), "test": slice(8, 12)}
    arrays = {f"{part}_images": values[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
    np.savez(tmp_path / "some.npz", **arrays)  # type: ignore[arg-type]
    opened = data.open_data("images", tmp_path)
    split = opened.split(None, seed=5)
    assert split.train.tolist() == [0, 1, 2, 3, 4, 5] and split.validation.tolist() == [6, 7]
    assert (opened.training.images[:, 0] == values[:8]).all()
    assert (opened.load_test().images[:, 0] == values[8:]).all()
    with pytest.raises(DataError, match=r"data.num_validation is 3, and the images have a validation part of 2"):
        opened.split(3, seed=5)


def test_turned_arrays_are_turned_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    np.savez(
        tmp_path / "turned.npz",
        x_train=values.swapaxes(1, 2).copy(),
        y_train=[0, 1] * 4,
        x_test=values,
        y_test=[0, 1] * 4,
    )
    own = find_own_images(tmp_path, is_transposed=True)
    assert (own.load().training.images[:, 0] == values).all()


@given(st.lists(st.integers(0, 10**6), min_size=2, unique=True))
def test_numbered_classes_follow_their_numbers(numbers: list[int]) -> None:
    assert ordered_classes([str(number) for number in numbers]) == [str(number) for number in sorted(numbers)]


def test_unused_labels_are_told(tmp_path: Path) -> None:
    images = np.zeros((9, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "letters.npz", x_train=images, y_train=[1, 2, 4] * 3)
    own = find_own_images(tmp_path)
    assert own.classes == ("1", "2", "4")
    assert "no image has the labels 0, 3, which are dropped" in own.description
    assert own.load().training.labels.max() == 2


# --- the rule of grey.py


@settings(max_examples=50)
@example(28, 28, "L")
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK"]))
def test_any_picture_fits(width: int, height: int, mode: str) -> None:
    plain = Image.new("L", (width, height), 200)
    image = Image.fromarray(np.full((height, width), 200 << 8, np.uint16)) if mode == "I;16" else plain.convert(mode)
    found = in_network_form(image)
    assert found.shape == (28, 28) and found.dtype == np.uint8 and found.flags.writeable
    assert (abs(found.astype(int) - (255 if mode == "1" and found[0, 0] == 255 else 200)) <= 1).all() or mode == "1"


def test_picture_is_centred_on_its_border() -> None:
    pixels = np.full((20, 60), 255, dtype=np.uint8)
    pixels[5:15, 10:50] = 0  # a bar on white paper
    found = in_network_form(Image.fromarray(pixels))
    assert (found[:8] == 255).all() and (found[-8:] == 255).all()
    assert found[14, 14] == 0


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (10, 10, 20, 20))
    found = in_network_form(image)
    assert found[0, 0] == 255 and found[15, 15] == 0


# --- bad input


def a_folder(folder: Path, num_classes: int = 2, num_images: int = 4) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (num_classes * num_images, 1, 28, 28), dtype=np.uint8)
    in_class_folders(folder, "train", data.LabelledImages(images, np.arange(len(images)) % num_classes))
    return folder


def with_empty_class(folder: Path) -> None:
    (a_folder(folder) / "train" / "nothing").mkdir()


def with_one_image(folder: Path) -> None:
    (a_folder(folder) / "train" / "few").mkdir()
    (folder / "train" / "0" / "0.png").rename(folder / "train" / "few" / "0.png")


def with_two_forms(folder: Path) -> None:
    np.savez(a_folder(folder) / "more.npz", x_train=np.zeros((4, 28, 28), np.uint8), y_train=[0, 1, 0, 1])


def with_two_archives(folder: Path) -> None:
    for name in ("a.npz", "b.npz"):
        np.savez(folder / name, x_train=np.zeros((4, 28, 28), np.uint8), y_train=[0, 1, 0, 1])


def without_train(folder: Path) -> None:
    for part in a_folder(folder).iterdir():
        for each in part.iterdir():
            each.rename(folder / each.name)
        part.rmdir()


def with_few_labels(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((4, 28, 28))))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3)))


def with_lying_header(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 10**9, 28, 28) + bytes(28 * 28))
    )
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4)))


def with_lying_archive(folder: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 28, 28)})
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x_train.npy", content.getvalue())
        archive.writestr("y_train.npy", content.getvalue())


def with_numbers_of_floats(folder: Path) -> None:
    np.savez(folder / "x.npz", x_train=np.zeros((4, 28, 28)), y_train=[0, 1, 0, 1])


def with_objects(folder: Path) -> None:
    np.savez(folder / "x.npz", x_train=np.zeros((4, 28, 28), np.uint8), y_train=np.array(["a", 1, None, 2], object))


def with_other_names(folder: Path) -> None:
    np.savez(folder / "x.npz", images=np.zeros((4, 28, 28), np.uint8), labels=[0, 1, 0, 1])


def with_foreign_test_class(folder: Path) -> None:
    a_folder(folder)
    in_class_folders(folder, "test", data.LabelledImages(np.zeros((2, 1, 28, 28), np.uint8), np.array([0, 7])))


def with_nothing(folder: Path) -> None:
    (folder / "readme.txt").write_text("no images")


REFUSED: dict[Callable[[Path], None], str] = {
    with_empty_class: r"train/nothing: a class without images",
    with_one_image: r"1 classes have fewer than 3 images.*few \(1\)",
    with_two_forms: r"two forms, class folders .* and the archive more.npz",
    with_two_archives: r"several sets \(a.npz, b.npz\)",
    without_train: r"no images in a known form.*; 0, 1 look like classes: move them into .*train",
    with_few_labels: r"train-labels-idx1-ubyte: it has 3 labels for the 4 images",
    with_lying_header: r"train-images-idx3-ubyte.gz: its header says \(1000000000, 28, 28\).* fewer",
    with_lying_archive: r"x.npz: the header of x_train says \(1000000, 28, 28\)",
    with_numbers_of_floats: r"x.npz: x_train: its values are float64, and images are uint8",
    with_objects: r"x.npz: y_train is stored as Python objects",
    with_other_names: r"x.npz: it holds images, labels, and either x_train, y_train or train_images, train_labels",
    with_foreign_test_class: r"1 classes of its test part have no training images: 7",
    with_nothing: r"no images in a known form: class folders",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_bad_folder_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=re.compile(REFUSED[make], re.DOTALL)) as caught:
        find_own_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.dir .*nowhere is not there: name a folder of images"):
        find_own_images(tmp_path / "nowhere")


def test_first_bad_files_are_named(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, num_images=10)
    for number in range(12):
        (folder / "train" / "0" / f"bad{number:02}.png").write_bytes(b"not an image" * number)
    lying = bytearray(next((folder / "train" / "1").glob("*.png")).read_bytes())
    lying[16:24] = struct.pack(">II", 9400, 9400)  # the size in a PNG's header, and the header's checksum
    lying[29:33] = struct.pack(">I", zlib.crc32(lying[12:29]))
    (folder / "train" / "1" / "lying.png").write_bytes(lying)
    with pytest.raises(DataError) as caught:
        find_own_images(folder).load()
    first, *lines = str(caught.value).splitlines()
    assert "13 of its files cannot be used" in first
    assert len(lines) == 11 and "bad00.png: not an image" in lines[0] and lines[-1] == "  and 3 more"
    (folder / "train" / "1" / "lying.png").rename(folder / "train" / "0" / "a.png")
    with pytest.raises(DataError, match=r"a.png: its header says 9400x9400 pixels"):
        find_own_images(folder).load()


def test_bad_files_of_all_parts_are_counted(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    in_class_folders(folder, "test", data.LabelledImages(np.zeros((2, 1, 28, 28), np.uint8), np.array([0, 1])))
    for part in ("train", "test"):
        (folder / part / "0" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of its files cannot be used(.|\n)*test/0/bad.png(.|\n)*train/0/bad.png"):
        find_own_images(folder).load()


def test_labels_may_be_large(tmp_path: Path) -> None:
    labels = np.array([0, 2**31 - 1] * 4, dtype=np.int32)
    np.savez(tmp_path / "large.npz", x_train=np.zeros((8, 28, 28), np.uint8), y_train=labels)
    description = find_own_images(tmp_path).description
    assert "in 2 classes; no image has the labels 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 ..., which are dropped" in description


def test_changes_of_files_are_counted(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    before = find_own_images(folder).load().files
    (folder / "train" / "0" / "0.png").unlink()
    Image.new("L", (28, 28), 3).save(folder / "train" / "0" / "2.png")
    for number in (20, 21, 22):
        Image.new("L", (28, 28), number).save(folder / "train" / "1" / f"{number}.png")
    assert changed_files(before, find_own_images(folder).load().files) == "3 files added, 1 gone, 1 changed"


def test_reading_is_followed(tmp_path: Path) -> None:
    told: list[int] = []
    find_own_images(a_folder(tmp_path, num_images=120)).load(told.append)
    assert sorted(told) == [100, 200, 240]
