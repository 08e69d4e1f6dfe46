"""Answers for programs: one JSON document on standard output."""

import argparse
import json
import math
from typing import Any

SCHEMA_VERSION = 1  # a larger one where a key of before means something else or is gone


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json to a command."""
    parser.add_argument("--json", action="store_true", help="print one JSON document with all figures, for programs")


def print_document(**content: Any) -> None:
    """Print a document; a number that JSON cannot hold is null."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **_finite(content)}, indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
