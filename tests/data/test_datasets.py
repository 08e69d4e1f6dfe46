"""What is read is what was hashed, splits are what they promise."""

import contextlib
import dataclasses
import gzip
import hashlib
import os
import random
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.data import datasets as data
from mnist_ray.data.datasets import LabelledImages
from mnist_ray.errors import DataError
from tests.real_mnist import MNIST_NAMES, REAL_RAW, TRAIN_IMAGES, needs_mnist

NOBODY = 65534
Array = npt.NDArray[Any]


@pytest.fixture
def mnist_dir(tmp_path: Path) -> Path:
    """A data folder of one's own with the four real files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_NAMES:
        shutil.copyfile(REAL_RAW / name, raw / name)
    return tmp_path


# --- real files -------------------------------------------------------------------------------------------


@needs_mnist
def test_real_mnist_is_what_torchvision_reads(mnist_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["nowhere:"])  # torchvision unpacks what is there
    data.fetch("mnist", mnist_dir)
    training, test = data.load_training("mnist", mnist_dir), data.load_test("mnist", mnist_dir)

    assert training.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert training.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    for mine, is_training in ((training, True), (test, False)):
        theirs = datasets.MNIST(mnist_dir, train=is_training, download=True)
        np.testing.assert_array_equal(mine.images[:, 0], theirs.data.numpy())
        np.testing.assert_array_equal(mine.labels, theirs.targets.numpy())
        assert (mine.images.dtype.name, mine.labels.dtype.name) == ("uint8", "int64")
        assert mine.images.flags.c_contiguous


@needs_mnist
def test_unpacked_files_are_never_read(mnist_dir: Path) -> None:
    for name in MNIST_NAMES:
        (mnist_dir / "MNIST" / "raw" / name.removesuffix(".gz")).write_bytes(b"not MNIST")
    data.fetch("mnist", mnist_dir)
    assert len(data.load_test("mnist", mnist_dir)) == 10_000


@needs_mnist
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_is_named_and_left_alone(mnist_dir: Path, seed: int) -> None:
    chance = random.Random(seed)
    file = mnist_dir / "MNIST" / "raw" / chance.choice(MNIST_NAMES)
    content = bytearray(file.read_bytes())
    position = chance.randrange(len(content))
    damaged = content[:position]
    if seed % 2:
        content[position] ^= 1 << chance.randrange(8)
        damaged = content
    file.write_bytes(damaged)

    load = data.load_training if file.name.startswith("train") else data.load_test
    with pytest.raises(DataError, match=file.name):
        load("mnist", mnist_dir)
    with pytest.raises(DataError, match=rf"{file.name}.*expected [0-9a-f]{{12}}: delete it"):
        data.fetch("mnist", mnist_dir)
    assert file.read_bytes() == bytes(damaged)


@contextlib.contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder that this process may read and not write, for root too, whom permissions do not stop."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)


def forbid_writing(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


@needs_mnist
def test_a_read_only_data_folder_serves() -> None:
    with read_only_folder() as folder:
        shutil.copytree(REAL_RAW, folder / "MNIST" / "raw")
        forbid_writing(folder)
        data.fetch("mnist", folder)
        assert len(data.load_test("mnist", folder)) == 10_000
        assert sorted(path.name for path in (folder / "MNIST" / "raw").iterdir()) == sorted(MNIST_NAMES)


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with read_only_folder() as folder:
        forbid_writing(folder)
        with pytest.raises(DataError, match=rf"{folder}.*Permission denied \(errno 13\)"):
            data.fetch("mnist", folder)


def test_missing_files_say_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load_training("kmnist", tmp_path)
    message = str(caught.value)
    for part in (
        str(tmp_path / "KMNIST" / "raw"),
        TRAIN_IMAGES,
        "--data-dir",
        "MNIST_RAY_DATA",
        "quickstart",
    ):
        assert part in message


@needs_mnist
def test_is_present_looks_and_does_not_hash(mnist_dir: Path) -> None:
    file = mnist_dir / "MNIST" / "raw" / TRAIN_IMAGES
    file.write_bytes(b"")
    assert data.is_present("mnist", mnist_dir)
    file.unlink()
    assert not data.is_present("mnist", mnist_dir)
    assert data.is_present("digits", mnist_dir)


def test_default_data_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MNIST_RAY_DATA", raising=False)
    assert data.default_data_dir() == tmp_path / ".cache" / "mnist_ray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.default_data_dir() == tmp_path / "cache" / "mnist_ray"
    monkeypatch.setenv("MNIST_RAY_DATA", str(tmp_path / "data"))
    assert data.default_data_dir() == tmp_path / "data"


# --- other data sets --------------------------------------------------------------------------------------


def idx(values: Array) -> bytes:
    """The packed IDX file of an array of uint8 or int32."""
    kind = {np.dtype(np.uint8): 0x08, np.dtype(np.int32): 0x0C}[values.dtype]
    header = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    return gzip.compress(header + values.astype(values.dtype.newbyteorder(">")).tobytes(), compresslevel=1)


def plant(data_dir: Path, source: data.IdxSource, images: bytes, labels: bytes) -> data.IdxSource:
    """Write the files of a source; the source that takes just these for right."""
    planted = []
    for file, content in ((source.images, images), (source.labels, labels)):
        file.path(data_dir).parent.mkdir(parents=True, exist_ok=True)
        file.path(data_dir).write_bytes(content)
        planted.append(dataclasses.replace(file, sha256=hashlib.sha256(content).hexdigest()))
    return dataclasses.replace(source, images=planted[0], labels=planted[1])


def plant_both(monkeypatch: pytest.MonkeyPatch, data_dir: Path, name: str, images: bytes, labels: bytes) -> None:
    halves = data.DATA_SETS[name]
    assert isinstance(halves.training, data.IdxSource) and isinstance(halves.test, data.IdxSource)
    replaced = data.DataSet(
        training=plant(data_dir, halves.training, images, labels),
        test=plant(data_dir, halves.test, images, labels),
    )
    monkeypatch.setitem(data.DATA_SETS, name, replaced)


def drawn(num_images: int, num_columns: int | None = None) -> tuple[Array, Array]:
    random_state = np.random.default_rng(num_images)
    images = random_state.integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
    if num_columns is None:
        return images, random_state.integers(0, 10, num_images, dtype=np.uint8)
    labels = random_state.integers(0, 2**30, (num_images, num_columns), dtype=np.int32)
    labels[:, 0] = random_state.integers(0, 10, num_images)
    return images, labels


@pytest.mark.parametrize(("name", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_relatives_of_mnist_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, folder: str) -> None:
    images, labels = drawn(30)
    plant_both(monkeypatch, tmp_path, name, idx(images), idx(labels))
    assert sorted(path.name for path in (tmp_path / folder / "raw").iterdir()) == sorted(MNIST_NAMES)
    data.fetch(name, tmp_path)
    for half in (data.load_training(name, tmp_path), data.load_test(name, tmp_path)):
        np.testing.assert_array_equal(half.images, images[:, np.newaxis])
        np.testing.assert_array_equal(half.labels, labels)
        assert half.labels.dtype == np.int64


def test_qmnist_takes_the_class_and_tests_on_the_first_ten_thousand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = drawn(10_020, num_columns=8)
    plant_both(monkeypatch, tmp_path, "qmnist", idx(images), idx(labels))
    data.fetch("qmnist", tmp_path)
    training, test = data.load_training("qmnist", tmp_path), data.load_test("qmnist", tmp_path)
    np.testing.assert_array_equal(training.images[:, 0], images)
    np.testing.assert_array_equal(training.labels, labels[:, 0])
    assert len(test) == 10_000
    np.testing.assert_array_equal(test.images[:, 0], images[:10_000])
    np.testing.assert_array_equal(test.labels, labels[:10_000, 0])


def test_the_second_test_of_qmnist_is_the_rest_of_its_test_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = drawn(10_020, num_columns=8)
    plant_both(monkeypatch, tmp_path, "qmnist", idx(images), idx(labels))
    test = data.DATA_SETS["qmnist"].test
    assert isinstance(test, data.IdxSource)
    monkeypatch.setitem(data.SECOND_TESTS, "qmnist50k", data.IdxSource(test.images, test.labels, start=10_000))
    data.fetch("qmnist", tmp_path, ["qmnist50k"])
    second = data.load_second_test("qmnist50k", tmp_path)
    np.testing.assert_array_equal(second.images[:, 0], images[10_000:])
    np.testing.assert_array_equal(second.labels, labels[10_000:, 0])


def test_the_digits_have_as_many_training_examples_as_is_said() -> None:
    assert len(data.load_training("digits", Path())) == data.DATA_SETS["digits"].num_training


def test_the_second_test_has_the_files_of_qmnists_own_test_half() -> None:
    assert data.SECOND_TESTS["qmnist50k"].files == data.DATA_SETS["qmnist"].test.files


@pytest.mark.parametrize("name", [name for name in data.DATA_SETS if name != "digits"])
def test_torchvision_has_an_address_and_the_same_name_for_every_file(name: str) -> None:
    for file in data.DATA_SETS[name].files:
        addresses = data._addresses(file)
        assert addresses and all(address.endswith(f"/{file.name}") for address in addresses)
        assert len(file.sha256) == 64


IMAGES, LABELS = drawn(12)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        pytest.param(idx(IMAGES[:11]), idx(LABELS), id="fewer images than labels"),
        pytest.param(idx(IMAGES[:, :, :27]), idx(LABELS), id="27 columns"),
        pytest.param(idx(IMAGES.astype(np.int32)), idx(LABELS), id="images of int32"),
        pytest.param(idx(IMAGES), idx(LABELS + np.uint8(5)), id="a class above nine"),
        pytest.param(gzip.compress(gzip.decompress(idx(IMAGES))[:-1]), idx(LABELS), id="a byte short"),
        pytest.param(gzip.compress(gzip.decompress(idx(IMAGES)) + b"\0"), idx(LABELS), id="a byte more"),
        pytest.param(gzip.compress(gzip.decompress(idx(IMAGES))[:9]), idx(LABELS), id="half a header"),
        pytest.param(gzip.compress(b""), idx(LABELS), id="nothing"),
        pytest.param(gzip.compress(b"\x89PNG" * 100), idx(LABELS), id="another format"),
        pytest.param(idx(IMAGES)[:-9], idx(LABELS), id="a packed stream that ends early"),
        pytest.param(b"plain", idx(LABELS), id="not packed"),
    ],
)
def test_a_file_that_is_not_what_the_format_says_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: bytes, labels: bytes
) -> None:
    plant_both(monkeypatch, tmp_path, "kmnist", images, labels)
    with pytest.raises(DataError, match=r"ubyte\.gz"):
        data.load_training("kmnist", tmp_path)


def test_what_is_read_is_what_was_hashed_though_the_file_changes_in_between(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exchanged right after it was hashed, by another file of the same form."""
    plant_both(monkeypatch, tmp_path, "kmnist", idx(IMAGES), idx(LABELS))
    file = data.DATA_SETS["kmnist"].training.files[1]

    def hash_and_exchange(content: bytes) -> Any:
        file.path(tmp_path).write_bytes(idx(LABELS[::-1]))
        return hashlib.sha256(content)

    with monkeypatch.context() as patch:
        patch.setattr(data, "hashlib", SimpleNamespace(sha256=hash_and_exchange))
        np.testing.assert_array_equal(data._read_idx(file, tmp_path), LABELS)
    with pytest.raises(DataError, match=file.name):
        data._read_idx(file, tmp_path)


def test_files_that_change_while_they_are_read_are_right_or_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody exchanges and rewrites them all the time; every answer is the right one or a DataError."""
    plant_both(monkeypatch, tmp_path, "kmnist", idx(IMAGES), idx(LABELS))
    path = data.DATA_SETS["kmnist"].training.files[1].path(tmp_path)
    ended = threading.Event()

    def exchange() -> None:
        beside = path.with_name("beside")
        while not ended.is_set():
            for labels in (LABELS[::-1], LABELS):
                beside.write_bytes(idx(labels))
                beside.replace(path)  # another file under the same name
                path.write_bytes(idx(labels))  # the same file, for a moment empty
            ended.wait(0.002)  # time enough to read it as it should be

    outcomes: list[str] = []
    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (len(outcomes) >= 200 and len(set(outcomes)) == 2):
            try:
                is_right = data.load_training("kmnist", tmp_path).labels.tolist() == LABELS.tolist()
                outcomes.append("right" if is_right else "wrong")
            except DataError:
                outcomes.append("refused")
    finally:
        ended.set()
        thread.join()
    assert set(outcomes) == {"right", "refused"}


def test_digits_are_the_same_everywhere_and_need_no_files(tmp_path: Path) -> None:
    data.fetch("digits", tmp_path / "nowhere")
    training = data.load_training("digits", tmp_path / "nowhere")
    test = data.load_test("digits", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert (training.images.shape, test.images.shape) == ((1437, 1, 28, 28), (360, 1, 28, 28))
    assert len(data.stratified_split(training.labels, 180, seed=0).train) == 1257
    for half in (training, test):
        assert (half.images.dtype.name, half.labels.dtype.name) == ("uint8", "int64")
        assert set(half.labels.tolist()) == set(range(10))
        assert half.images.max() == 255
        assert not half.images[:, :, :2].any() and not half.images[:, :, :, -2:].any()
    assert np.bincount(test.labels).min() >= 35
    seen = {image.tobytes() for image in training.images}
    assert not [image for image in test.images if image.tobytes() in seen]


def test_digits_of_another_release_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "DIGITS_TEST_SEED", 1)
    with pytest.raises(DataError, match="scikit-learn"):
        data.load_training("digits", tmp_path)


# --- splitting and measuring ------------------------------------------------------------------------------


@st.composite
def splittable(draw: st.DrawFn) -> tuple[Array, int, int]:
    """(labels, num_validation, seed) that a split exists for."""
    class_counts = draw(st.lists(st.integers(2, 40), min_size=1, max_size=10))
    labels = np.repeat(np.arange(len(class_counts), dtype=np.int64), class_counts)
    num_validation = draw(st.integers(len(class_counts), len(labels) - len(class_counts)))
    seed = draw(st.integers(0, 2**31 - 1))
    return np.random.default_rng(seed).permutation(labels), num_validation, seed


@settings(max_examples=60, deadline=None)
@given(splittable())
def test_a_split_is_a_stratified_partition(case: tuple[Array, int, int]) -> None:
    labels, num_validation, seed = case
    split = data.stratified_split(labels, num_validation, seed)
    assert len(split.validation) == num_validation
    assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(len(labels)))
    for side in (split.train, split.validation):
        assert side.dtype == np.int64
        assert (np.diff(side) > 0).all()
        proportional = np.bincount(labels) * len(side) / len(labels)
        held = np.bincount(labels[side], minlength=len(proportional))
        assert (np.abs(held - proportional) < 1 + 1e-9).all()
    again = data.stratified_split(labels, num_validation, seed)
    assert again.sha256 == split.sha256
    assert again.sha256 == hashlib.sha256(split.train.tobytes() + split.validation.tobytes()).hexdigest()


def test_another_seed_is_another_split() -> None:
    labels = np.repeat(np.arange(10), 20)
    assert len({data.stratified_split(labels, 50, seed).sha256 for seed in range(5)}) == 5


@pytest.mark.parametrize("num_validation", [-1, 0, 9, 191, 200, 201])
def test_an_impossible_split_is_refused(num_validation: int) -> None:
    with pytest.raises(DataError, match=rf"num_validation is {num_validation}:.*10 to 190"):
        data.stratified_split(np.repeat(np.arange(10), 20), num_validation, seed=0)


@pytest.mark.parametrize("labels", [[], [0, 0, 0, 1]])
def test_labels_that_cannot_be_stratified_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match="num_validation is 2"):
        data.stratified_split(np.array(labels, dtype=np.int64), 2, seed=0)


@settings(max_examples=20, deadline=None)
@given(num_images=st.integers(1, 3000), seed=st.integers(0, 2**31 - 1))
def test_pixel_statistics_are_those_of_float64(num_images: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (num_images, 1, 28, 28), dtype=np.uint8)
    found = data.pixel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert found.mean == pytest.approx(scaled.mean(), rel=0, abs=1e-12)
    assert found.std == pytest.approx(scaled.std(), rel=0, abs=1e-12)


@needs_mnist
def test_pixel_statistics_of_mnist_are_the_well_known_ones() -> None:
    found = data.pixel_statistics(data.load_training("mnist", REAL_RAW.parents[1]).images)
    assert (round(found.mean, 4), round(found.std, 4)) == (0.1307, 0.3081)


def test_pixel_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        data.pixel_statistics(np.zeros((0, 1, 28, 28), dtype=np.uint8))


def test_content_hash_follows_images_labels_and_order() -> None:
    examples = LabelledImages(IMAGES[:, np.newaxis], LABELS.astype(np.int64))
    order = np.arange(len(examples))
    other_labels = LabelledImages(examples.images, (examples.labels + 1) % 10)
    hashes = [
        data.content_sha256(found)
        for found in (examples, examples.take(order[::-1]), examples.take(order[:-1]), other_labels)
    ]
    assert len(set(hashes)) == 4
    assert data.content_sha256(examples.take(order)) == hashes[0]
