"""Data sets are fetched and loaded as verified, whatever lies in the folder."""

import contextlib
import gzip
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mnist_ray import data
from mnist_ray.config import parse_spec
from mnist_ray.data import files
from mnist_ray.data.idx import IdxSource
from mnist_ray.errors import DataError
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.pipeline.doctor import examine
from mnist_ray.pipeline.plan import plan
from tests.data.made_files import drawn, idx, plant_both
from tests.real_mnist import MNIST_NAMES, REAL_RAW, TRAIN_IMAGES, needs_mnist

NOBODY = 65534


@pytest.fixture
def mnist_dir(tmp_path: Path) -> Path:
    """Make a data folder with copies of the four real files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_NAMES:
        shutil.copyfile(REAL_RAW / name, raw / name)
    return tmp_path


@needs_mnist
def test_mnist_equals_torchvisions(mnist_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_packed_files_go_first(mnist_dir: Path) -> None:
    for name in MNIST_NAMES:
        (mnist_dir / "MNIST" / "raw" / name.removesuffix(".gz")).write_bytes(b"not MNIST")
    data.fetch("mnist", mnist_dir)
    assert len(data.load_test("mnist", mnist_dir)) == 10_000


@needs_mnist
@pytest.mark.parametrize("seed", range(8))
def test_damaged_file_is_named_and_kept(mnist_dir: Path, seed: int) -> None:
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
    with pytest.raises(DataError, match=rf"{file.name}.*expected [0-9a-f]{{12}}: delete the file"):
        data.fetch("mnist", mnist_dir)
    assert file.read_bytes() == bytes(damaged)


@contextlib.contextmanager
def read_only_folder() -> Iterator[Path]:
    """Make a folder that `forbid_writing` can make read-only, for root too."""
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
    """Take the permission to write, and root's identity, which permissions do not stop."""
    import mnist_ray.data.download  # noqa: F401  # here, because another user may not be able to import anything

    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


@needs_mnist
def test_read_only_folder_suffices() -> None:
    with read_only_folder() as folder:
        shutil.copytree(REAL_RAW, folder / "MNIST" / "raw")
        forbid_writing(folder)
        data.fetch("mnist", folder)
        assert len(data.load_test("mnist", folder)) == 10_000
        assert sorted(path.name for path in (folder / "MNIST" / "raw").iterdir()) == sorted(MNIST_NAMES)


def test_unwritable_folder_is_named() -> None:
    with read_only_folder() as folder:
        forbid_writing(folder)
        with pytest.raises(DataError, match=rf"{folder}.*Permission denied \(errno 13\)"):
            data.fetch("mnist", folder)


def test_missing_file_error_names_the_remedies(tmp_path: Path) -> None:
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
@pytest.mark.parametrize("wrapping", ["unpacked", "unpacked under the packed name", "packed again"])
def test_same_content_is_accepted(mnist_dir: Path, wrapping: str) -> None:
    for name in MNIST_NAMES:
        file = mnist_dir / "MNIST" / "raw" / name
        content = gzip.decompress(file.read_bytes())
        file.unlink()
        if wrapping == "unpacked":
            file.with_name(name.removesuffix(".gz")).write_bytes(content)
        else:
            file.write_bytes(gzip.compress(content, 1) if wrapping == "packed again" else content)
    data.fetch("mnist", mnist_dir)
    assert len(data.load_training("mnist", mnist_dir)) == 60_000
    assert data.load_test("mnist", mnist_dir).labels[:5].tolist() == [7, 2, 1, 0, 4]


@needs_mnist
def test_wrong_unpacked_file_is_refused(mnist_dir: Path) -> None:
    file = mnist_dir / "MNIST" / "raw" / TRAIN_IMAGES
    content = bytearray(gzip.decompress(file.read_bytes()))
    file.unlink()
    content[-1] ^= 1
    file.with_name(TRAIN_IMAGES.removesuffix(".gz")).write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: its 47040016 bytes have SHA-256"):
        data.fetch("mnist", mnist_dir)


def test_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 10**6)
    file = data.DATA_SETS["mnist"].training.files[0].path(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(bytes(2 * 10**6)))
    with pytest.raises(DataError, match=file.name):
        data.load_training("mnist", tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "too large"])
def test_data_file_must_be_a_file(tmp_path: Path, kind: str) -> None:
    file = data.DATA_SETS["mnist"].training.files[0].path(tmp_path)
    file.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as sparse:
            sparse.truncate(files.MOST_BYTES + 1)
    with pytest.raises(DataError, match=rf"{file.name} cannot be read: it (is|has)"):
        data.fetch("mnist", tmp_path)


@needs_mnist
@pytest.mark.parametrize(
    ("given", "lies", "remedy"),
    [
        ("MNIST", "MNIST/raw", "name {root} as the data folder"),
        ("MNIST/raw", "MNIST/raw", "name {root} as the data folder"),
        (".", "deeper/MNIST/raw", "name {root}/deeper as the data folder"),
        (".", ".", "move it and the others to {root}/MNIST/raw"),
        (".", "raw", "move it and the others to {root}/MNIST/raw"),
        (".", "MNIST", "move it and the others to {root}/MNIST/raw"),
    ],
)
def test_files_nearby_are_named(tmp_path: Path, given: str, lies: str, remedy: str) -> None:
    (tmp_path / lies).mkdir(parents=True, exist_ok=True)
    for name in MNIST_NAMES:
        (tmp_path / lies / name).symlink_to(REAL_RAW / name)
    with pytest.raises(DataError) as caught:
        data.load_training("mnist", tmp_path / given)
    said = f"{tmp_path / lies / TRAIN_IMAGES} is there: {remedy.format(root=tmp_path)}"
    assert said in str(caught.value)
    assert said in data.presence("mnist", tmp_path / given)


@needs_mnist
def test_presence_needs_right_content(mnist_dir: Path) -> None:
    assert data.presence("mnist", mnist_dir) == "found"
    file = mnist_dir / "MNIST" / "raw" / TRAIN_IMAGES
    file.write_bytes(b"<html>404</html>\n")
    with pytest.raises(DataError, match="its 17 bytes"):
        data.presence("mnist", mnist_dir)
    file.unlink()
    assert not data.is_present("mnist", mnist_dir)
    assert data.presence("mnist", mnist_dir).startswith("missing")
    assert data.is_present("digits", mnist_dir)


def test_plan_and_doctor_name_a_wrong_file(tmp_path: Path) -> None:
    file = data.DATA_SETS["mnist"].training.files[0].path(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"<html>404</html>\n")
    spec = parse_spec({"data": {"name": "mnist", "dir": str(tmp_path)}, "storage": str(tmp_path)})
    planned = plan(spec, Capacity(cpus=8, gpus=0))
    assert any(f"{file}: its 17 bytes" in obstacle for obstacle in planned.obstacles)
    [found] = [finding for finding in examine(tmp_path, tmp_path) if finding.what == "data mnist"]
    assert not found.is_good and "its 17 bytes" in found.text


def test_default_data_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MNIST_RAY_DATA", raising=False)
    assert data.default_data_dir() == tmp_path / ".cache" / "mnist_ray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.default_data_dir() == tmp_path / "cache" / "mnist_ray"
    monkeypatch.setenv("MNIST_RAY_DATA", str(tmp_path / "data"))
    assert data.default_data_dir() == tmp_path / "data"


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


def test_qmnist_tests_on_first_ten_thousand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images, labels = drawn(10_020, num_columns=8)
    plant_both(monkeypatch, tmp_path, "qmnist", idx(images), idx(labels))
    data.fetch("qmnist", tmp_path)
    training, test = data.load_training("qmnist", tmp_path), data.load_test("qmnist", tmp_path)
    np.testing.assert_array_equal(training.images[:, 0], images)
    np.testing.assert_array_equal(training.labels, labels[:, 0])
    assert len(test) == 10_000
    np.testing.assert_array_equal(test.images[:, 0], images[:10_000])
    np.testing.assert_array_equal(test.labels, labels[:10_000, 0])


def test_second_test_is_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images, labels = drawn(10_020, num_columns=8)
    plant_both(monkeypatch, tmp_path, "qmnist", idx(images), idx(labels))
    test = data.DATA_SETS["qmnist"].test
    assert isinstance(test, IdxSource)
    monkeypatch.setitem(data.SECOND_TESTS, "qmnist50k", IdxSource(test.images, test.labels, start=10_000))
    data.fetch("qmnist", tmp_path, ["qmnist50k"])
    second = data.load_second_test("qmnist50k", tmp_path)
    np.testing.assert_array_equal(second.images[:, 0], images[10_000:])
    np.testing.assert_array_equal(second.labels, labels[10_000:, 0])


def test_table_counts_the_digits_right() -> None:
    assert len(data.load_training("digits", Path())) == data.DATA_SETS["digits"].num_training


def test_second_test_needs_no_other_files() -> None:
    assert data.SECOND_TESTS["qmnist50k"].files == data.DATA_SETS["qmnist"].test.files


def test_import_stays_light() -> None:
    program = (
        "import sys\n"
        "from mnist_ray import data\n"
        "heavy = ('torch', 'torchvision', 'sklearn', 'pooch', 'requests', 'filelock', 'ray')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
