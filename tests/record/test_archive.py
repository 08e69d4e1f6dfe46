"""Packing and unpacking a record: the same files, and nothing from a text that is cut, changed or hostile."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.archive import pack, unpack
from mnist_ray.record.event_log import EventLog, Numbered
from mnist_ray.record.events import SearchStarted
from mnist_ray.record.lease import owned
from mnist_ray.record.rundir import RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A record of 12 files, the last one with three events, and two blobs; beside it a lease and a report."""
    run = RunDir(tmp_path_factory.mktemp("runs") / "small")
    with owned(run, when_lost=lambda: None) as writer:
        for number in range(10):
            writer.publish(SearchStarted(at=f"2026-01-01T00:00:0{number}+00:00"))
        for blob in (b"weights", b"logits"):
            writer.put_blob(blob, "blob")
            writer.record(SearchStarted())
        writer.publish(SearchStarted())
    run.paths.report.write_text("a report")
    return run


def events_of(folder: Path) -> list[Numbered]:
    return EventLog(folder / "record").read_new()


def record_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in (folder / "record").rglob("*") if path.is_file()
    }


def made_by_hand(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> str:
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


def test_record_survives_a_noisy_log(run: RunDir, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    unpack(f"a warning of some library\n{pack(run.path)}and one more\n", copy)
    assert record_of(copy) == record_of(run.path)
    assert len(record_of(copy)) == 14
    assert events_of(copy) == events_of(run.path)
    assert [path.name for path in copy.iterdir()] == ["record"]


def test_packing_stops_at_a_gap(run: RunDir, tmp_path: Path) -> None:
    """A listing of a busy folder may show a file without the one before it, and unfinished files."""
    unpack(pack(run.path), tmp_path / "busy")
    record = tmp_path / "busy" / "record"
    (record / "000010.json").unlink()
    (record / ".000010.json.abc.json").write_bytes(b"{")
    (record / "blobs" / f".{'0' * 64}.tmp").write_bytes(b"half")
    unpack(pack(tmp_path / "busy"), tmp_path / "copy")
    assert events_of(tmp_path / "copy") == events_of(run.path)[:9]
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
def test_foreign_members_are_refused(name: str, kind: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "copy"
    with pytest.raises(CorruptFileError, match="does not belong to a record"):
        unpack(made_by_hand({name: b""}, kind), folder)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]


def test_damaged_text_is_refused(run: RunDir, tmp_path: Path) -> None:
    whole = pack(run.path)
    changed = whole.replace("A", "B", 1)
    for text in ("", whole[: len(whole) // 2], whole.replace("-end", ""), whole[:900] + whole[977:], changed):
        with pytest.raises(CorruptFileError, match="fetch it again"):
            unpack(text, tmp_path / "copy")
    with pytest.raises(CorruptFileError, match="not an archive"):
        unpack(framed(b"no archive at all"), tmp_path / "copy")
    with pytest.raises(CorruptFileError, match="damaged"):
        unpack(made_by_hand({f"record/blobs/{'0' * 64}": b"another content"}), tmp_path / "copy")


def test_packing_job_prints_the_record(run: RunDir, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    jobs = []
    for name in ("small", "absent"):
        request.write_text(f'{{"run": "{name}", "storage": "{run.path.parent}"}}')
        command = [sys.executable, "-m", "mnist_ray.record.archive", str(request)]
        jobs.append(subprocess.run(command, capture_output=True, text=True, check=False))
    packed, failed = jobs
    assert packed.returncode == 0, packed.stderr
    unpack(packed.stdout, tmp_path / "copy")
    assert record_of(tmp_path / "copy") == record_of(run.path)
    assert failed.returncode != 0
    assert f"there is no run 'absent' in {run.path.parent} (there: small)" in failed.stdout
