"""A job under Ray: two trials share the GPU, and a retraining has the whole of it."""

import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from mnist_ray.benchmarks.gpu.bench import Bench, Check
from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.record.state import Training

NUM_AT_ONCE = 2


def check_ray(bench: Bench) -> Iterator[Check]:
    """Run a small job on digits, which come with scikit-learn; a rehearsal asks for no GPU."""
    if find_spec("ray") is None:
        yield Check("trials and retraining under Ray", not_run="no Ray")
        return
    from mnist_ray.api import run_job
    from mnist_ray.ray_backend.backend import RayBackend

    with tempfile.TemporaryDirectory(prefix="mr-", ignore_cleanup_errors=True) as folder:
        spec, backend = _spec(bench, Path(folder)), RayBackend("local", Path(folder, "ray"))
        state = run_job(spec, backend, progress=False).state
    trials, retrained = state.trainings("search"), state.trainings("retrain")
    at_once = _most_at_once(trials)
    figures = {"gpus_per_trial": spec.search.gpus_per_trial, "trials_at_once": at_once, **_ways(trials)}
    yield Check("trials that share the GPU", figures, at_once == NUM_AT_ONCE and _are_sound(bench, trials))
    yield Check(
        "retraining", {"gpus_per_worker": int(not bench.is_rehearsal), **_ways(retrained)}, _are_sound(bench, retrained)
    )


def _spec(bench: Bench, folder: Path) -> JobSpec:
    return parse_spec(
        {
            "name": "gpu",
            "storage": str(folder / "results"),
            "data": {"name": "digits", "num_validation": 200},
            "search": {
                "num_trials": 2 * NUM_AT_ONCE,
                "num_epochs": 2,
                "early_stopping": None,
                "gpus_per_trial": 0.0 if bench.is_rehearsal else 1 / NUM_AT_ONCE,
                "max_concurrent_trials": NUM_AT_ONCE,
            },
            "final": None,
            "retrain": {"num_epochs": 2, "baseline": False, "gpus_per_worker": int(not bench.is_rehearsal)},
        }
    )


def _most_at_once(trainings: Sequence[Training]) -> int:
    """Count the trainings that were under way when another one began."""
    spans = [
        (datetime.fromisoformat(each.created_at), datetime.fromisoformat(each.ended.at))
        for each in trainings
        if each.ended is not None
    ]
    return max((sum(began <= start < ended for began, ended in spans) for start, _ in spans), default=0)


def _ways(trainings: Sequence[Training]) -> dict[str, object]:
    ends = [each.ended for each in trainings if each.ended is not None]
    return {
        "status": [end.status for end in ends],
        "device": sorted({end.device for end in ends}),
        "steps": [end.steps for end in ends],
    }


def _are_sound(bench: Bench, trainings: Sequence[Training]) -> bool:
    expected = ("complete", "eager" if bench.is_rehearsal else "captured")
    ends = [each.ended for each in trainings]
    are_complete = [end is not None and (end.status, end.steps) == expected for end in ends]
    return bool(are_complete) and all(are_complete)
