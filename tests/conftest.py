"""What holds for every test: one thread, no random verdicts, and no skips where $MNIST_RAY_NO_SKIPS is 1."""

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

pytest_plugins = ["tests.ray_head", "tests.s3_server"]

# Before anything imports torch; processes that tests start inherit it. Two threads on two busy cores are slower.
os.environ["OMP_NUM_THREADS"] = "1"

# The same change gets the same verdict, on a slow machine too.
settings.register_profile("mnist_ray", deadline=None, derandomize=True)
settings.load_profile("mnist_ray")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole file can be skipped too."""
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("MNIST_RAY_NO_SKIPS") == "1":
        path, line, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: skipped, which $MNIST_RAY_NO_SKIPS forbids: {reason}"
