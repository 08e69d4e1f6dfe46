"""Publication without haste, for tests of events that still wait."""

import pytest

from mnist_ray.record import writer


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be published only because it has waited."""
    monkeypatch.setattr(writer, "GATHER_S", 1000.0)
