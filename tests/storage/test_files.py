"""A reader sees the old content or the new, and refuses content that was not written."""

import errno
import json
import os
import random
import shutil
import socket
import stat
import subprocess
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.cli.main import main
from mnist_ray.errors import CorruptFileError
from mnist_ray.record.tables import read_results
from mnist_ray.storage import files
from mnist_ray.storage.files import (
    FAILPOINT,
    MOST_BYTES,
    create_atomic,
    read,
    read_bounded,
    read_sealed_json,
    replace_atomic,
    write_atomic,
    write_json,
)
from mnist_ray.storage.files import write_sealed_json as seal

BODY = {"id": "trial-0003", "loss": 0.0214, "tiny": 1e-300, "epochs": [1, 2, 3], "reason": None, "größe": "a|b\nc"}


class StopWritingError(Exception):
    pass


def fail_half_way(unfinished: Path) -> None:
    unfinished.write_bytes(b"half")
    raise StopWritingError


def test_written_file_is_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomic(path, b"\0one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [found.name for found in path.parent.iterdir()] == ["file.bin"]


def test_failed_write_keeps_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, b"old")
    with pytest.raises(StopWritingError):
        replace_atomic(path, fail_half_way)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_unfinished_file_is_hidden_beside(tmp_path: Path) -> None:
    """np.save adds .npy to other names, and only within one file system is a rename atomic."""
    paths: list[Path] = []
    replace_atomic(tmp_path / "logits.npy", paths.append)
    [unfinished] = paths
    assert (unfinished.parent, unfinished.suffix) == (tmp_path, ".npy")
    assert unfinished.name.startswith("."), "unfinished files are hidden"


def test_content_is_flushed_before_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flush a power cut can leave an empty file under the new name."""
    path = tmp_path / "file.txt"
    synced: list[tuple[bytes, bool]] = []
    real_fsync = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            synced.append((os.pread(handle, 100, 0), path.exists()))
        real_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_atomic(path, lambda unfinished: unfinished.write_bytes(b"content"))
    assert synced == [(b"content", False)]


def test_reader_never_sees_half_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    bodies: list[Any] = [list(range(count)) for count in (3000, 10)]
    seal(path, bodies[0])
    stopping = threading.Event()

    def keep_writing() -> None:
        while not stopping.is_set():
            for body in bodies:
                seal(path, body)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        seen = [len(read_sealed_json(path)) for _ in range(300)]
    finally:
        stopping.set()
        writer.join()
    assert set(seen) <= {3000, 10}


def test_existing_file_is_not_created_again(tmp_path: Path) -> None:
    path = tmp_path / "000001.json"
    create_atomic(path, b"first")
    create_atomic(path, b"first")  # as after a lost reply of an NFS server
    with pytest.raises(FileExistsError):
        create_atomic(path, b"second")
    assert path.read_bytes() == b"first"
    assert [found.name for found in tmp_path.iterdir()] == ["000001.json"]


def link_refused(*names: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_files_are_created_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", link_refused)
    path = tmp_path / "file"
    create_atomic(path, b"one")
    create_atomic(path, b"one")
    with pytest.raises(FileExistsError):
        create_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a file system that has neither hard links nor a rename that replaces nothing."""
    if not shutil.which("mkfs.exfat") or not shutil.which("mount.exfat-fuse") or os.geteuid() != 0:
        pytest.skip("needs Debian's exfatprogs and exfat-fuse, and root")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    device = subprocess.run(
        ["losetup", "-f", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        subprocess.run(["mount.exfat-fuse", device, folder], check=True, capture_output=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.slow
def test_exfat_is_refused_at_the_start(exfat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = exfat / "runs"
    assert main(["run", "jobs/quickstart.yaml", "--local", "--storage", str(storage)]) == 6
    errors = capsys.readouterr().err
    assert f"{storage}/quickstart/record: this file system has neither hard links nor" in errors
    assert "Traceback" not in errors


def test_create_passes_every_failpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: Counter[str] = Counter()
    monkeypatch.setattr(files, "_passed", passed)
    monkeypatch.setenv(FAILPOINT, "none")
    create_atomic(tmp_path / "one", b"1", "event-epoch", "event-ended")
    create_atomic(tmp_path / "two", b"2")
    names = ("event-epoch", "event-ended", "two")
    assert passed == {f"{name}:{moment}": 1 for name in names for moment in ("before", "during", "after")}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=4), parts, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_sealed_values_read_back_equal(tmp_path_factory: pytest.TempPathFactory, body: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    seal(path, body)
    assert repr(read_sealed_json(path)) == repr(body)


def test_nan_survives_sealing(tmp_path: Path) -> None:
    seal(tmp_path / "x.json", [float("nan"), float("-inf")])
    assert repr(read_sealed_json(tmp_path / "x.json")) == "[nan, -inf]"


def test_no_changed_byte_changes_the_body(tmp_path: Path) -> None:
    """Change each byte of the file: reading refuses the file, or (white space) returns the body that was written."""
    path = tmp_path / "sealed.json"
    seal(path, BODY)
    whole = path.read_bytes()
    chance = random.Random(0)
    num_refused, num_tried = 0, 0
    for position, byte in enumerate(whole):
        for other in {byte ^ (1 << chance.randrange(8)), chance.choice(sorted({*range(256)} - {byte}))}:
            path.write_bytes(whole[:position] + bytes([other]) + whole[position + 1 :])
            num_tried += 1
            try:
                body = read_sealed_json(path)
            except CorruptFileError:
                num_refused += 1
            else:
                assert body == BODY
    assert num_refused >= 0.98 * num_tried


def test_cut_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    seal(path, BODY)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=r"sealed\.json: "):
            read_sealed_json(path)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b"{}", b'{"body": 1}', b"\xff\xfe", b"[" * 5000])
def test_unsealed_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sealed.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="not a sealed JSON file"):
        read_sealed_json(path)


def test_other_body_under_old_seal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    seal(path, BODY)
    sealed = json.loads(path.read_bytes())
    path.write_text(json.dumps(sealed | {"body": BODY | {"loss": 0.0213}}))
    with pytest.raises(CorruptFileError, match="does not match its SHA-256"):
        read_sealed_json(path)
    with pytest.raises(FileNotFoundError):
        read_sealed_json(tmp_path / "absent.json")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "too large"])
def test_only_bounded_files_are_read(tmp_path: Path, kind: str) -> None:
    """Each of these would block, go on for ever or take all memory."""
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as sparse:
            sparse.truncate(MOST_BYTES + 1)
    with pytest.raises(OSError, match=r"it (is a .*, not a file|is larger than 256 MB)") as caught:
        read(path)
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match=r"it (is|has)"):
        read_results(path)


def test_bound_is_inclusive(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than"):
        read_bounded(tmp_path / "file", 4)


def test_large_file_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as sparse:
        sparse.truncate(200 * 10**6)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="it is larger than 1 MB"):
            read_bounded(tmp_path / "file", 10**6)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
