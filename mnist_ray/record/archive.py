"""A run's record as one piece of text that can be sent: packed where the run is, unpacked where it is wanted.

Only the record travels. Everything else in a run's folder is disposable or made from the record (see rundir.py), and
views that another process is writing meanwhile would not fit together.
"""

import base64
import io
import itertools
import json
import re
import sys
import tarfile
from pathlib import Path

from mnist_ray.errors import CorruptFileError, SpecError
from mnist_ray.record.rundir import find_run
from mnist_ray.storage.files import StoragePath, children, read_each, sha256, storage_path

_NAMES = re.compile(r"record/(\d{6,}\.json|blobs/[0-9a-f]{64})")
_HEAD, _END = "mnist-ray-packed", "mnist-ray-packed-end"


def packed(folder: StoragePath) -> str:
    """The record of the run in a folder, as lines of text with their SHA-256. The run may go on meanwhile."""
    record = folder / "record"
    listed = {event.name for event in children(record, "*.json")}
    names = list(itertools.takewhile(listed.__contains__, (f"{number:06d}.json" for number in itertools.count(1))))
    names += [f"blobs/{blob.name}" for blob in children(record / "blobs")]  # each was there before its event
    names = [name for name in names if _NAMES.fullmatch(f"record/{name}")]  # a file that is being written has another
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, file in zip(names, read_each([record / name for name in names]), strict=True):
            member = tarfile.TarInfo(f"record/{name}")
            member.size = len(file)
            archive.addfile(member, io.BytesIO(file))
    body = content.getvalue()
    return f"{_HEAD} {sha256(body)} {len(body)}\n{base64.encodebytes(body).decode()}{_END}\n"


def unpack(text: str, folder: Path) -> None:
    """Put a packed record into an empty folder. Raises CorruptFileError for a text that is cut, changed or hostile."""
    body = _body(text)
    try:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:gz") as archive:
            for member in archive:
                if not member.isfile() or not _NAMES.fullmatch(member.name):
                    raise CorruptFileError(f"the packed record holds {member.name!r}, which is no part of a record")
                _write(folder / member.name, archive, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of this disk
        raise CorruptFileError(f"the packed record is no archive ({error})") from None
    check(folder)


def _write(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Its content alone: of modes, owners and links nothing is wanted, and early releases of 3.11 have no filters."""
    content = archive.extractfile(member)
    assert content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.read())


def _body(text: str) -> bytes:
    found = re.search(rf"^{_HEAD} ([0-9a-f]{{64}}) (\d+)\n(.*?)^{_END}$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise CorruptFileError("the packed record is cut off: fetch it again")
    body = base64.b64decode(found.group(3))
    if sha256(body) != found.group(1) or len(body) != int(found.group(2)):
        raise CorruptFileError("the packed record is not what was sent: fetch it again")
    return body


def check(folder: Path) -> None:
    """Raises CorruptFileError where a blob is not what its name says; reading the run checks its events."""
    for path in (folder / "record" / "blobs").glob("*"):
        if sha256(path.read_bytes()) != path.name:
            raise CorruptFileError(f"the packed record holds a damaged {path.name}: fetch it again")


def main(request: Path) -> int:
    """As a job of a cluster: print the record that a file asks for."""
    try:
        asked = json.loads(request.read_text(encoding="utf-8"))
        run = find_run(asked["run"], storage_path(asked["storage"]))
        print(packed(run.path), end="")
    except (SpecError, OSError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
