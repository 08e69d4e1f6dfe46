"""A run's record as text that can be sent: packed on the cluster, unpacked elsewhere.

Only the record is packed. Everything else in a run's folder is disposable or exported from the record (paths.py), and
exported files that another process writes meanwhile would not fit together.
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


def pack(folder: StoragePath) -> str:
    """Return the record of the run in a folder, as lines of text with their SHA-256. The run may go on meanwhile."""
    record = folder / "record"
    listed = {file.name for file in children(record, "*.json")}
    names = list(itertools.takewhile(listed.__contains__, (f"{number:06d}.json" for number in itertools.count(1))))
    names += [f"blobs/{blob.name}" for blob in children(record / "blobs")]  # written before the events that name them
    names = [name for name in names if _NAMES.fullmatch(f"record/{name}")]  # an unfinished file has another name
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, file in zip(names, read_each([record / name for name in names]), strict=True):
            member = tarfile.TarInfo(f"record/{name}")
            member.size = len(file)
            archive.addfile(member, io.BytesIO(file))
    body = content.getvalue()
    return f"{_HEAD} {sha256(body)} {len(body)}\n{base64.encodebytes(body).decode()}{_END}\n"


def unpack(text: str, folder: Path) -> None:
    """Write a packed record into an empty folder.

    Raises CorruptFileError for a text that is cut, changed or hostile, and for a blob that is not what its name says.
    The events are checked when the run is read.
    """
    body = _body(text)
    try:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:gz") as archive:
            for member in archive:
                if not member.isfile() or not _NAMES.fullmatch(member.name):
                    raise CorruptFileError(
                        f"the packed record holds {member.name!r}, which does not belong to a record"
                    )
                _write(folder / member.name, archive, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of this disk
        raise CorruptFileError(f"the packed record is not an archive ({error})") from None
    for blob in (folder / "record" / "blobs").glob("*"):
        if sha256(blob.read_bytes()) != blob.name:
            raise CorruptFileError(f"the packed record holds a damaged {blob.name}: fetch it again")


def _write(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Write a member's content alone; early releases of Python 3.11 have no filters for modes, owners and links."""
    content = archive.extractfile(member)
    assert content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.read())


def _body(text: str) -> bytes:
    """Return the archive in a text, whatever stands around it."""
    match = re.search(rf"^{_HEAD} ([0-9a-f]{{64}}) (\d+)\n(.*?)^{_END}$", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise CorruptFileError("the packed record is cut off: fetch it again")
    body = base64.b64decode(match.group(3))
    if sha256(body) != match.group(1) or len(body) != int(match.group(2)):
        raise CorruptFileError("the packed record is not what was sent: fetch it again")
    return body


def main(request_file: Path) -> int:
    """Print the record that a request file names; the cluster runs this as a job."""
    try:
        request = json.loads(request_file.read_text(encoding="utf-8"))
        print(pack(find_run(request["run"], storage_path(request["storage"])).path), end="")
    except (SpecError, OSError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
