"""The seconds of a job add up, and the ratios are those of the medians."""

import time
from pathlib import Path

import pytest

from mnist_ray import LocalBackend, run_job
from mnist_ray.benchmarks.groups import Stage, _section
from mnist_ray.benchmarks.startup import LABELS, seconds_of
from tests.small_job import small_spec, use_few_images


def test_seconds_lie_within_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)
    began = time.time()
    run = run_job(small_spec(tmp_path), LocalBackend())
    ended = time.time()
    seconds = seconds_of(run, began, ended)
    found = {name: getattr(seconds, name) for name in LABELS}
    assert all(-0.05 <= value <= ended - began + 0.05 for value in found.values()), found
    assert found["until_first_step"] > 0 and found["training"] > 0
    assert found["whole"] == ended - began


def test_ratios_of_groups_are_of_medians() -> None:
    found = {
        "2 side by side": [Stage(10.0, 2.0), Stage(12.0, 2.2), Stage(11.0, 2.1)],
        "2 workers": [Stage(20.0, 1.3), Stage(22.0, 1.5), Stage(24.0, 1.4)],
        "1 worker": [Stage(30.0, 1.8), Stage(31.0, 1.9), Stage(32.0, 2.0)],
    }
    efficiency, ratio, asked = _section(found, 2, 4, 3).ratios.values()
    assert efficiency == pytest.approx(1.9 / 2.1)
    assert ratio == pytest.approx(11 / 22)
    assert asked == pytest.approx(1.05 * 0.80 / efficiency)
