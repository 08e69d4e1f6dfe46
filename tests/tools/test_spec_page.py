"""The page about the spec follows from the model, and explains every key."""

import json

import pytest

from mnist_ray.cli.main import main
from mnist_ray.config import OPERATIONAL_KEYS, spec_keys
from tools.spec_page import PAGE, spec_page


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == spec_page(), "python -m tools.spec_page writes it again"


def test_page_names_every_key() -> None:
    sections = {section.partition("\n")[0].strip("`"): section for section in spec_page().split("\n## ")}
    for key in spec_keys():
        part, _, name = key.rpartition(".")
        section = "search" if part.startswith("search.space") else part or "The whole job"
        assert f"| `{name}` |" in sections[section], key
    assert all(f"- `{key}`" in spec_page() for key in OPERATIONAL_KEYS)


def test_schema_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    """As an editor shows it: a key that holds a part is explained by that part."""
    assert main(["specs", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    parts = schema["$defs"]
    for name, part in {"JobSpec": schema, **parts}.items():
        for key, content in part["properties"].items():
            explained = (content, parts.get(content.get("$ref", "").rpartition("/")[2], {}))
            assert any("description" in each for each in explained), f"{name}.{key}: give it a description in config.py"
