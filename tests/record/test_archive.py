"""A record that is packed and unpacked is the record; one that is cut, changed or hostile leaves nothing."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.archive import packed, unpack
from mnist_ray.record.rundir import RunDir
from tests.report.made_up import made_up_spec, make_up


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_up(made_up_spec(tmp_path_factory.mktemp("runs"), search={"num_trials": 5}))


def record_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in (folder / "record").rglob("*") if path.is_file()
    }


def packed_by_hand(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> str:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, member in members.items():
            facts = tarfile.TarInfo(name)
            facts.size, facts.type, facts.linkname = len(member), kind, "/etc/passwd"
            archive.addfile(facts, io.BytesIO(member))
    return framed(content.getvalue())


def framed(body: bytes) -> str:
    head = f"mnist-ray-packed {hashlib.sha256(body).hexdigest()} {len(body)}\n"
    return head + base64.encodebytes(body).decode() + "mnist-ray-packed-end\n"


def test_the_record_comes_out_bit_for_bit_whatever_a_log_holds_around_it(run: RunDir, tmp_path: Path) -> None:
    unpack(f"a warning of some library\n{packed(run.path)}and one more\n", tmp_path / "copy")
    assert record_of(tmp_path / "copy") == record_of(run.path)
    assert RunDir(tmp_path / "copy").events() == run.events()


def test_a_run_that_is_written_meanwhile_is_packed_as_far_as_it_is_whole(run: RunDir, tmp_path: Path) -> None:
    """A later event without the one before it, and files half written: what a look at a busy folder may find."""
    unpack(packed(run.path), tmp_path / "busy")
    record = tmp_path / "busy" / "record"
    (record / "000010.json").unlink()
    (record / ".000010.json.abc.json").write_bytes(b"{")
    (record / "blobs" / f".{'0' * 64}.tmp").write_bytes(b"half")
    unpack(packed(tmp_path / "busy"), tmp_path / "copy")
    assert RunDir(tmp_path / "copy").events() == run.events()[:9]
    assert not list((tmp_path / "copy").rglob(".*"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../escaped.json", tarfile.REGTYPE),
        ("record/../../000001.json", tarfile.REGTYPE),
        ("/tmp/escaped.json", tarfile.REGTYPE),
        ("leases/000001.json", tarfile.REGTYPE),
        ("report.html", tarfile.REGTYPE),
        ("record/000001.json", tarfile.SYMTYPE),
        ("record/000001.json", tarfile.LNKTYPE),
        ("record/000001.json", tarfile.FIFOTYPE),
        ("record/blobs", tarfile.DIRTYPE),
    ],
)
def test_what_is_no_part_of_a_record_is_refused(name: str, kind: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "copy"
    with pytest.raises(CorruptFileError, match="no part of a record"):
        unpack(packed_by_hand({name: b""}, kind), folder)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]


def test_what_is_cut_or_changed_is_refused(run: RunDir, tmp_path: Path) -> None:
    whole = packed(run.path)
    changed = whole.replace("A", "B", 1)
    for text in ("", whole[: len(whole) // 2], whole.replace("-end", ""), whole[:900] + whole[977:], changed):
        with pytest.raises(CorruptFileError, match="fetch it again"):
            unpack(text, tmp_path / "copy")
    with pytest.raises(CorruptFileError, match="no archive"):
        unpack(framed(b"no archive at all"), tmp_path / "copy")
    with pytest.raises(CorruptFileError, match="damaged"):
        unpack(packed_by_hand({f"record/blobs/{'0' * 64}": b"another content"}), tmp_path / "copy")


def test_the_job_that_packs_says_what_is_missing(run: RunDir, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    said = []
    for name in ("made-up", "absent"):
        request.write_text(f'{{"run": "{name}", "storage": "{run.path.parent}"}}')
        command = [sys.executable, "-m", "mnist_ray.record.archive", str(request)]
        said.append(subprocess.run(command, capture_output=True, text=True, check=False))
    assert said[0].returncode == 0, said[0].stderr
    unpack(said[0].stdout, tmp_path / "copy")
    assert record_of(tmp_path / "copy") == record_of(run.path)
    assert said[1].returncode != 0
    assert f"there is no run 'absent' in {run.path.parent} (there: made-up)" in said[1].stdout
