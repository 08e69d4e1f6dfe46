"""Any input is accepted as a spec or refused with the names of its keys."""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mnist_ray.config import RUN_NAME, Hyperparameters, JobSpec, dump_spec, load_spec, parse_spec, spec_keys
from mnist_ray.errors import SpecError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-1, 3),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=20),
    st.sampled_from(["digits", "mnist", "val_loss", "../x", "1e-4"]),
    st.dates(),
    st.binary(max_size=3),
)
KEY_STEPS = sorted({step for key in spec_keys() for step in key.split(".")})
keys = st.one_of(st.sampled_from(KEY_STEPS), st.text(st.characters(codec="utf-8"), min_size=1, max_size=8))
values = st.recursive(
    scalars,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(keys, parts, max_size=4),
    max_leaves=12,
)
# Names that YAML 1.1, YAML 1.2 or both read as something else, unless they are in quotes.
AMBIGUOUS = [
    "no",
    "On",
    "y",
    "true",
    "null",
    "010",
    "08",
    "0o17",
    "0x1F",
    "1e4",
    "1E-4",
    "1.",
    "1.5",
    "1_000",
    "2024-05-01",
]
contents = st.dictionaries(keys, values, max_size=5)


def a_whole_spec() -> dict[str, Any]:
    return parse_spec({"data": {"name": "digits"}}).model_dump(mode="json")


@st.composite
def nearly_right(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a whole spec with a few values, parts or keys changed."""
    content = a_whole_spec()
    for _ in range(draw(st.integers(1, 3))):
        part: Any = content
        *parents, last = draw(st.sampled_from(sorted(spec_keys()))).split(".")
        for name in parents:
            if not isinstance(part.get(name), dict) or draw(st.integers(0, 5)) == 0:
                last = name
                break
            part = part[name]
        if draw(st.booleans()):
            part[last] = draw(values)
        else:
            part.pop(last, None)
            part[draw(keys)] = draw(values)
    return content


def paths_of(content: Any, prefix: str = "") -> Iterator[str]:
    steps = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in steps:
        yield f"{prefix}{name}"
        yield from paths_of(value, f"{prefix}{name}.")


def check_spec_or_refusal(content: dict[str, Any]) -> None:
    before = copy.deepcopy(content)
    given_paths = set(paths_of(content))
    known = (
        given_paths
        | spec_keys().keys()
        | {"data"}
        | {f"{path}.{end}" for path in given_paths for end in ("low", "high")}
    )
    try:
        spec = parse_spec(content, "job.yaml")
    except SpecError as error:
        lines = str(error).split("job.yaml: ")
        assert lines.pop(0) == ""
        assert lines
        for line in lines:
            assert any(line.startswith((f"{key} ", f"{key}: ")) for key in known), line
    else:
        assert yaml.safe_load(dump_spec(spec)).keys() == JobSpec.model_fields.keys()
        assert parse_spec(yaml.safe_load(dump_spec(spec))) == spec
        for key, dimension in spec.search.space.items():
            for value in dimension.extremes:
                Hyperparameters.model_validate({key: int(value) if key == "batch_size" else value})
    assert repr(content) == repr(before), "what is read is not written to"


@given(contents)
@example({"data": {"name": "digits"}})
def test_any_values_are_accepted_or_refused(content: dict[str, Any]) -> None:
    check_spec_or_refusal(content)


@given(nearly_right())
def test_changed_specs_are_accepted_or_refused(content: dict[str, Any]) -> None:
    check_spec_or_refusal(content)


def refusal_of(path: Path, overrides: Sequence[str] = ()) -> str | None:
    try:
        load_spec(path, overrides)
    except SpecError as error:
        return str(error)
    return None


@given(st.text(max_size=60) | st.text("{}[]:,-&*!? \n\t'\"|>%@a1.e<=", max_size=60) | contents.map(yaml.safe_dump))
def test_any_text_is_accepted_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refusal = refusal_of(path)
    assert refusal is None or refusal.startswith(f"{path}: ")


@given(st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from(sorted(spec_keys())), st.text(max_size=20)))
def test_any_override_is_accepted_or_refused(tmp_path_factory: pytest.TempPathFactory, override: str) -> None:
    path = tmp_path_factory.getbasetemp() / "digits.yaml"
    path.write_text("data: {name: digits}\n")
    refusal = refusal_of(path, [override])
    assert refusal is None or re.split("[.=]", override)[0] in refusal or repr(override) in refusal


@given(st.from_regex(RUN_NAME, fullmatch=True) | st.sampled_from(AMBIGUOUS), st.sampled_from(["name", "storage"]))
def test_dumped_texts_are_read_back(tmp_path_factory: pytest.TempPathFactory, text: str, key: str) -> None:
    """By a reader of YAML 1.1 too, as most tools are."""
    spec = parse_spec({"data": {"name": "digits"}, key: text})
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_spec(spec), encoding="utf-8")
    assert load_spec(path) == spec
    assert parse_spec(yaml.safe_load(dump_spec(spec))) == spec
