"""A folder of a stranger, whose seals are right: what is in it is refused in one line, or shown without harm."""

import io
import json
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from mnist_ray.record.rundir import RunDir
from mnist_ray.shown import shown
from mnist_ray.storage.files import read_sealed_json, seal, sha256, write_sealed_json
from tests.faults.conftest import MadeRun
from tests.faults.made_run import RETRAINING, tamper

ESCAPE, SCRIPT = "\x1b]0;owned\x07\x1b[2J", "<script>alert(1)</script>"
HOSTILE: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1.5,
        10**30,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "x",
        ESCAPE,
        SCRIPT,
        "\ud800",
        "x" * 10**6,
    ),
    *("0001-01-01T00:00:00+00:00", "2026-01-01T00:00:00", "recipe", "../../x", [], {}, [[]], {"": None}),
]
COMMANDS = ("list", "compare", "report", "evaluate", "predict")


def check_is_harmless(made: MadeRun, capsys: pytest.CaptureFixture[str], commands: tuple[str, ...] = COMMANDS) -> None:
    """Check that each command ends with one of the documented codes, and that nothing hostile gets out."""
    for command in commands:
        code = made.do(command)
        output, errors = capsys.readouterr()
        assert code in (0, 2, 3), (command, code, errors)
        assert "\x1b" not in output + errors and "\x07" not in output + errors
        if code and command != "list":
            assert errors.startswith("mnist-ray: "), errors
    for path in (
        made.run.paths.results_markdown,
        made.run.paths.model_folder / "README.md",
        made.run.paths.results_csv,
    ):
        text = path.read_text() if path.exists() else ""
        assert "\x1b" not in text
        assert path.suffix == ".csv" or SCRIPT not in text


def leaves(value: Any, key: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the key of each value in an event."""
    yield key
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from leaves(each, (*key, name))


def change(run: RunDir, kind: str, key: tuple[Any, ...], value: Any) -> None:
    """Put a value into each event of a kind, and seal the log again."""
    previous = ""
    for path in sorted(run.paths.record.glob("*.json")):
        body = read_sealed_json(path)
        for event in body["events"]:
            if event["kind"] == kind:
                place = event
                for name in key[:-1]:
                    place = place[name]
                place[key[-1]] = value
        body["previous"] = previous
        write_sealed_json(path, body)
        previous = seal(body)


def events_of(run: RunDir) -> list[dict[str, Any]]:
    files = sorted(run.paths.record.glob("*.json"))
    return [event for path in files for event in read_sealed_json(path)["events"]]


CASES: list[tuple[str, tuple[Any, ...], Any]] = [
    ("run_taken", ("host",), ESCAPE),
    ("session_started", ("at",), "2026-01-01T00:00:00"),
    ("session_started", ("versions",), {"torch": ESCAPE}),
    ("session_started", ("versions",), {ESCAPE: "2"}),
    ("session_started", ("spec", "retrain", "baseline_from"), SCRIPT + ESCAPE),
    ("session_started", ("spec", "final"), {"top_k": 3, "seeds": 10**9}),
    ("training_created", ("number",), None),
    ("training_created", ("config", "num_epochs"), 10**30),
    ("epoch_reported", ("metrics", "validation"), None),
    ("epoch_reported", ("metrics", "train", "loss"), float("nan")),
    ("epoch_reported", ("metrics", "train", "num_correct"), 10**9),
    ("epoch_reported", ("metrics", "train", "num_examples"), 0),
    ("training_ended", ("device",), SCRIPT),
    ("training_ended", ("reason",), SCRIPT + ESCAPE),
    ("configuration_selected", ("training",), "trial-0077"),
    ("configuration_selected", ("retrainings",), []),
    ("test_opened", ("data",), ESCAPE),
    ("test_scored", ("scores", RETRAINING), {}),
    ("test_scored", ("scores", RETRAINING, "test", "score", "num_examples"), 0),
    ("test_scored", ("examples",), {}),
]


@pytest.mark.parametrize(("kind", "key", "value"), CASES, ids=lambda part: ascii(part)[:30])
def test_hostile_events_do_no_harm(
    finished: MadeRun, kind: str, key: tuple[Any, ...], value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    change(finished.run, kind, key, value)
    check_is_harmless(finished, capsys, ("list", "compare", "report"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_any_hostile_value_does_no_harm(finished: MadeRun, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    event = chance.choice([event for event in events_of(finished.run) if event["kind"] != "epoch_reported" or seed % 9])
    key = chance.choice([key for key in leaves(event) if key and key != ("kind",)])
    value = chance.choice(HOSTILE)
    try:
        change(finished.run, event["kind"], key, value)
    except (KeyError, TypeError, IndexError, ValueError, UnicodeError):
        pytest.skip("another event of the kind has no such key, or JSON cannot hold the value")
    check_is_harmless(finished, capsys)


# --- blobs


def header_only(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": descr, "fortran_order": False, "shape": shape})
    return content.getvalue()


def examples(**changes: Any) -> bytes:
    tensors: dict[str, Any] = {
        "labels": np.zeros(360, dtype=np.uint8),
        "missed": np.arange(360),
        "missed_images": np.zeros((360, 28, 28), dtype=np.uint8),
    }
    return save(tensors | changes)


BLOBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "pickled model": ("model", lambda: pickle.dumps({"weights": [1.0]})),
    "model of other tensors": ("model", lambda: save({"weights": np.zeros(3, dtype=np.float32)})),
    "model that is no number": ("model", lambda: save({"weights": np.full(3, np.nan, dtype=np.float32)})),
    "header that asks for all memory": ("logits", lambda: header_only((10**12, 10))),
    "pickled logits": ("logits", lambda: header_only((360, 10), "|O") + pickle.dumps([0])),
    "long header": ("logits", lambda: b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535),
    "logits that are no numbers": ("logits", lambda: header_only((360, 10)) + b"\xff" * 14400),
    "empty logits": ("logits", lambda: b""),
    "labels beyond the classes": ("test", lambda: examples(labels=np.full(360, 77, dtype=np.uint8))),
    "no labels": ("test", lambda: examples(labels=np.zeros(0, dtype=np.uint8))),
    "images of another form": ("test", lambda: examples(missed_images=np.zeros((360, 2, 2), dtype=np.uint8))),
    "no missed ones": (
        "test",
        lambda: examples(missed=np.zeros(0, np.int64), missed_images=np.zeros((0, 28, 28), np.uint8)),
    ),
    "safetensors of 2 to the 60": ("test", lambda: (2**60).to_bytes(8, "little") + b"{}"),
}


@pytest.mark.parametrize("name", BLOBS)
def test_hostile_blobs_do_no_harm(finished: MadeRun, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    key, make = BLOBS[name]
    content = make()
    finished.run.blob_path(sha256(content)).write_bytes(content)
    tamper(finished.run, lambda value: _replaced(value, key, sha256(content)))
    assert finished.do("predict" if name == "model of other tensors" else "report") == 3
    assert capsys.readouterr().err.startswith("mnist-ray: ")
    assert not (finished.run.paths.model_folder / "model.safetensors").exists()


def _replaced(value: Any, key: str, name: str) -> Any:
    return {**value, key: name} if isinstance(value, dict) and isinstance(value.get(key), str) else value


# --- other files


@pytest.mark.parametrize(
    "content",
    [b"[" * 10**5, b'{"body": {}, "sha256": 7}', b'{"body": [], "sha256": ""}', b"7", b"\xff\xfe", b"1" * 10**5],
)
@pytest.mark.parametrize("place", ["record/000001.json", "leases/000001.json", "result.json"])
def test_hostile_files_do_no_harm(
    finished: MadeRun, place: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished.run.path / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    check_is_harmless(finished, capsys, ("compare",))


@pytest.mark.parametrize("num_events", [10**30, -1, "7", 1.5, None, True])
def test_hostile_counts_do_no_harm(finished: MadeRun, num_events: Any, capsys: pytest.CaptureFixture[str]) -> None:
    finished.run.paths.outcome.write_text(json.dumps({"num_events": num_events}))
    write_sealed_json(finished.run.paths.lease(1), {"at": 0.0, "num_events": num_events, "is_over": True})
    check_is_harmless(finished, capsys, ("compare",))


def test_names_of_folders_are_shown_safely(finished: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    finished.run.path.rename(finished.storage / f"a{ESCAPE}b")
    (finished.folder / "elsewhere").mkdir()
    check_is_harmless(finished, capsys, ("list", "predict with the latest", "report"))


@pytest.mark.parametrize("text", ["plain", "a − b → ü", "two\nlines", "日本", "emoji ☃"])
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize("letter", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\ud800", "\0"])
def test_unseen_letters_are_marked(letter: str) -> None:
    assert shown(f"a{letter}b") == "a\ufffdb"
