"""Files of the log hold events in order, follow each other without a gap, and are read whole or not at all."""

import json
import random
import shutil
import threading
from pathlib import Path

import pytest

from mnist_ray.errors import CorruptFileError
from mnist_ray.record import event_log
from mnist_ray.record.event_log import EventLog
from mnist_ray.record.events import Event, SearchStarted, UnknownEvent
from mnist_ray.storage import files
from mnist_ray.storage.files import read_sealed_json, sealed_json
from tests.record.examples import created, every_kind, one_training, reported


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of three files: of one event, of four, and of two."""
    log = EventLog(tmp_path / "record")
    log.add(every_kind()[:1])
    log.add(one_training())
    log.add([SearchStarted(), reported()])
    return tmp_path / "record"


def read_all(folder: Path) -> list[Event]:
    return [numbered.event for numbered in EventLog(folder).read_new()]


def test_events_read_back_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    written = every_kind()
    log.add(written[:1])
    log.add(written[1:])
    assert read_all(tmp_path) == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.json", "000002.json"]


def test_events_are_numbered_through_files(folder: Path) -> None:
    log = EventLog(folder)
    assert [numbered.number for numbered in log.read_new()] == [1, 2, 3, 4, 5, 6, 7]
    assert (log.num_files, log.num_events) == (3, 7)
    bodies = [read_sealed_json(path) for path in sorted(folder.glob("*.json"))]
    assert [(body["file"], body["first"], body["last"]) for body in bodies] == [(1, 1, 1), (2, 2, 5), (3, 6, 7)]


def test_adding_returns_the_numbers(folder: Path) -> None:
    log = EventLog(folder)
    log.read_new()
    assert [numbered.number for numbered in log.add([reported(), reported()])] == [8, 9]


def test_readers_follow_a_growing_log(folder: Path) -> None:
    writer, reader = EventLog(folder), EventLog(folder)
    writer.read_new()
    assert len(reader.read_new()) == 7
    assert reader.read_new() == []
    writer.add([created("trial-0001")])
    assert [numbered.number for numbered in reader.read_new()] == [8]


def test_an_absent_log_is_empty(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "absent")
    assert (log.exists, log.read_new()) == (False, [])


# --- one writer


def test_a_taken_number_is_refused(folder: Path) -> None:
    first, second = EventLog(folder), EventLog(folder)
    first.read_new()
    second.read_new()
    second.add([reported()])
    before = read_all(folder)
    with pytest.raises(FileExistsError):
        first.add([SearchStarted()])
    assert read_all(folder) == before
    assert first.num_events == 7
    assert first.is_followed()


def test_only_another_owner_takes_over(folder: Path) -> None:
    log, other = EventLog(folder), EventLog(folder)
    log.read_new()
    other.read_new()
    assert not log.is_followed() and not log.is_taken_over()
    other.add([every_kind()[0], SearchStarted()])
    assert log.is_followed() and log.is_taken_over()


# --- half a batch


def test_leftovers_of_killed_writes_are_not_read(folder: Path) -> None:
    before = read_all(folder)
    whole = (folder / "000003.json").read_bytes()
    (folder / ".000004.json.x7abc_.json").write_bytes(whole[: len(whole) // 2])
    (folder / ".000005.json.y8bcd_.json").write_bytes(b"")
    assert read_all(folder) == before


@pytest.mark.parametrize("num_left", [0, 1, 3])
def test_part_of_a_batch_is_refused(folder: Path, num_left: int) -> None:
    """Even one under a seal that fits."""
    body = read_sealed_json(folder / "000002.json")
    (folder / "000003.json").unlink()
    (folder / "000002.json").write_bytes(sealed_json(body | {"events": body["events"][:num_left]}))
    with pytest.raises(CorruptFileError, match=r"000002\.json does not follow"):
        read_all(folder)


def test_readers_see_whole_batches(tmp_path: Path) -> None:
    batch = [reported(epoch=epoch) for epoch in range(1, 101)]
    writer, reader = EventLog(tmp_path), EventLog(tmp_path)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: [writer.add(batch) for _ in range(20)])
    thread.start()
    while thread.is_alive():
        seen.append(len(reader.read_new()))
    thread.join()
    seen.append(len(reader.read_new()))
    assert sum(seen) == 2000
    assert all(number % 100 == 0 for number in seen)


# --- damage


def test_damaged_files_are_refused_by_name(folder: Path) -> None:
    chance = random.Random(0)
    for path in sorted(folder.glob("*.json")):
        whole = path.read_bytes()
        for damaged in (b"", whole[: chance.randrange(len(whole))], whole.replace(b"e", b"f", 1), b"[]", b"{}"):
            path.write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=path.name):
                read_all(folder)
        path.write_bytes(whole)
    assert len(read_all(folder)) == 7


@pytest.mark.parametrize("body", [[], 3, None, {}, {"file": 3}, {"file": 3, "first": 6, "last": "x", "previous": ""}])
def test_sealed_files_of_other_formats_are_refused(folder: Path, body: object) -> None:
    (folder / "000003.json").write_bytes(sealed_json(body))
    with pytest.raises(CorruptFileError, match=r"000003\.json"):
        read_all(folder)


def test_damaged_events_are_refused_by_file(folder: Path) -> None:
    """Even under a seal that fits."""
    body = read_sealed_json(folder / "000003.json")
    for broken in ({**body["events"][1], "metrics": {"epoch": 1}}, {"id": "no kind"}, "no event"):
        (folder / "000003.json").write_bytes(sealed_json(body | {"events": [body["events"][0], broken]}))
        with pytest.raises(CorruptFileError, match=r"000003\.json: .*event"):
            read_all(folder)


def test_damaged_successors_are_named(folder: Path) -> None:
    """The lease's thread looks for another owner, and passes over damage that has this type."""
    body = read_sealed_json(folder / "000003.json")
    log = EventLog(folder)
    (folder / "000003.json").unlink()
    log.read_new()
    (folder / "000003.json").write_bytes(sealed_json(body | {"events": [{"id": "no kind"}, *body["events"][1:]]}))
    with pytest.raises(CorruptFileError, match=r"000003\.json"):
        log.is_taken_over()


def test_missing_files_are_named(folder: Path) -> None:
    for path in sorted(folder.glob("*.json"))[:-1]:
        whole = path.read_bytes()
        path.unlink()
        assert EventLog(folder).exists
        with pytest.raises(CorruptFileError, match=f"{path.name} is missing"):
            read_all(folder)
        path.write_bytes(whole)
    assert len(read_all(folder)) == 7


def test_files_of_another_log_are_refused(folder: Path, tmp_path: Path) -> None:
    other = EventLog(tmp_path / "other")
    other.add(every_kind()[:1])
    other.add(one_training())
    other.add([SearchStarted(), reported()])
    shutil.copy(folder / "000002.json", tmp_path / "other" / "000002.json")
    with pytest.raises(CorruptFileError, match=r"00000[23]\.json does not follow"):
        read_all(tmp_path / "other")


def test_exchanged_files_are_refused(folder: Path) -> None:
    second, third = (folder / name for name in ("000002.json", "000003.json"))
    contents = second.read_bytes(), third.read_bytes()
    third.write_bytes(contents[0])
    second.write_bytes(contents[1])
    with pytest.raises(CorruptFileError, match=r"000002\.json does not follow"):
        read_all(folder)


def test_a_refusal_is_repeated(folder: Path) -> None:
    """A second look does not go on behind the damage."""
    (folder / "000003.json").write_bytes(b"{")
    log = EventLog(folder)
    for _ in range(2):
        with pytest.raises(CorruptFileError, match=r"000003\.json"):
            log.read_new()


def test_an_outage_loses_no_event(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = EventLog(folder), EventLog(folder)
    writer.read_new()
    reader.read_new()
    writer.add([created("trial-0001")])
    writer.add([created("trial-0002")])

    def read(path: Path) -> bytes:
        if path.name == "000005.json":
            raise OSError("out of reach")
        return files.read(path)

    monkeypatch.setattr(event_log, "read", read)
    with pytest.raises(OSError, match="out of reach"):
        reader.read_new()
    monkeypatch.undo()
    assert [numbered.number for numbered in reader.read_new()] == [8, 9]


def test_unknown_kinds_are_passed_over(folder: Path) -> None:
    body = read_sealed_json(folder / "000003.json")
    weather = {"kind": "weather_observed", "at": "2026-11-27T09:00:00.000+00:00", "text": "sunny"}
    (folder / "000003.json").write_bytes(sealed_json(body | {"events": [weather, body["events"][1]]}))
    assert [type(event) for event in read_all(folder)[-2:]] == [UnknownEvent, type(reported())]


def test_files_are_plain_json(folder: Path) -> None:
    content = json.loads((folder / "000002.json").read_text())
    assert [event["kind"] for event in content["body"]["events"]] == [
        *("training_created", "epoch_reported", "epoch_reported", "training_ended")
    ]
