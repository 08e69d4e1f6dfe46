"""A plan says what a job would take from what is known, and what is in its way, without starting anything."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.errors import DataError, SpecError
from mnist_ray.pipeline import plan as planning
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.pipeline.plan import END_S, START_UP_S, Plan, Speed, expected_epochs, measured_speed, plan
from mnist_ray.ray_backend.compat import upload_bytes
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.timing import start_up_s
from tests.faults.made_run import tamper
from tests.report.made_up import made_up_spec, make_up

TWO = Capacity(2, 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a made-up speed in the place of the measured one, which takes a second."""
    monkeypatch.setattr(planning, "measured_speed", lambda spec: Speed(2e-4, "0.2 ms an image", is_rough=True))


def a_spec(storage: Path, **changes: Any) -> JobSpec:
    data = {"name": "mnist", "dir": str(storage)} | changes.pop("data", {})
    return parse_spec({"data": data, "storage": str(storage), **changes})


def facts(found: Plan) -> dict[str, str]:
    return dict(found.facts)


def test_plan_names_slots_batches_and_data(tmp_path: Path) -> None:
    found = plan(a_spec(tmp_path, retrain={"workers": 2, "seeds": [0, 1]}), TWO)
    assert facts(found)["trials"] == "20, 2 at a time, each on 1 CPU"
    assert facts(found)["retraining"].startswith("4 trainings, 1 at a time, each on 2 workers of 1 CPU")
    assert "retrain.workers=1 is faster here" in facts(found)["retraining"]
    assert "64 of 128" in facts(found)["images per worker"] and "256 of 512" in facts(found)["images per worker"]
    assert "missing, downloaded" in facts(found)["data"]
    assert found.obstacles == []


@pytest.mark.parametrize("num_validation", [9, 59_991, 60_000, 70_000])
def test_impossible_split_is_refused(tmp_path: Path, num_validation: int) -> None:
    with pytest.raises(DataError, match=rf"data.num_validation is {num_validation}: .* 10 to 59990 can be held out"):
        plan(a_spec(tmp_path, data={"num_validation": num_validation}), TWO)


@pytest.mark.parametrize(("num_validation", "is_told"), [(59_488, False), (59_489, True)])
def test_oversized_batch_is_told(tmp_path: Path, num_validation: int, is_told: bool) -> None:
    found = plan(a_spec(tmp_path, data={"num_validation": num_validation}), TWO)
    assert ("search.space.batch_size goes up to 512" in facts(found).get("warning", "")) == is_told


def test_benchmark_gives_time_and_cost(tmp_path: Path) -> None:
    section = {"rows": [{"loop": "mnist_ray", "threads": 1, "wall ms": 25.6}]}  # 0.2 ms an image
    (tmp_path / "benchmark.json").write_text(json.dumps({"sections": [section]}))
    search = {"num_trials": 4, "num_epochs": 2, "early_stopping": None}
    spec = a_spec(
        tmp_path,
        search=search,
        final={"top_k": 2, "seeds": 2, "num_epochs": 3},
        retrain={"num_epochs": 10, "workers": 2},
    )
    found = plan(spec, TWO)
    times = {each.stage: (each.expected_s, each.at_most_s) for each in found.estimates}
    assert times["search"] == pytest.approx((4 * 2 * 11 / 2, 4 * 2 * 11 / 2))  # 55,000 images take 11 s
    assert times["final"] == pytest.approx((3 * 3 * 11, 3 * 3 * 11))  # six trainings, two at once
    assert times["retrain"] == pytest.approx((2 * 10 * 12 / 2, 2 * 10 * 12))
    total = sum(low for low, _ in times.values()), sum(high for _, high in times.values())
    (cost,) = [line for line in found.lines(36.0) if line.startswith("cost")]
    assert f"{total[0] / 100:.2f} to {total[1] / 100:.2f}" in cost


def test_elastic_retrainings_run_side_by_side(tmp_path: Path) -> None:
    section = {"rows": [{"loop": "mnist_ray", "threads": 1, "wall ms": 25.6}]}  # 0.2 ms an image
    (tmp_path / "benchmark.json").write_text(json.dumps({"sections": [section]}))
    found = plan(a_spec(tmp_path, retrain={"num_epochs": 10, "workers": [1, 8]}), TWO)
    assert found.obstacles == []
    assert facts(found)["retraining"].startswith("2 trainings, 2 at a time, each on 1 to 8 workers")
    assert "16 to 128 of 128, 32 to 256 of 256" in facts(found)["images per worker"]
    (estimate,) = [each for each in found.estimates if each.stage == "retrain"]
    alone_s = 2 * 10 * 12  # 60,000 images take 12 s
    assert (estimate.expected_s, estimate.at_most_s) == pytest.approx((alone_s / 2, alone_s / 2))  # two fit


@pytest.mark.parametrize(
    ("retrain", "remedy"),
    [
        ({"workers": 3}, "3 workers with 1 CPUs each need 3 CPUs, the cluster has 2: use --set retrain.workers=2, or"),
        (
            {"workers": [3, 8]},
            "3 workers with 1 CPUs each need 3 CPUs, the cluster has 2: use --set 'retrain.workers=[2, 8]', or",
        ),
        (
            {"workers": [1, 8], "cpus_per_worker": 3},
            "use --set 'retrain.workers=[1, 8]' --set retrain.cpus_per_worker=2, or",
        ),
    ],
)
def test_fewest_workers_must_fit(tmp_path: Path, retrain: dict[str, Any], remedy: str) -> None:
    with pytest.raises(SpecError) as refused:
        TWO.check_retraining(a_spec(tmp_path, retrain=retrain))
    assert remedy in str(refused.value)
    TWO.check_retraining(a_spec(tmp_path, retrain={"workers": [2, 8]}))


def test_earlier_run_gives_the_speed(tmp_path: Path) -> None:
    make_up(made_up_spec(tmp_path, name="earlier"), until="searched")  # 180 images in 0.01 s
    found = plan(made_up_spec(tmp_path, name="next"), TWO)
    assert "from run earlier" in facts(found)["speed"]
    assert [each.stage for each in found.estimates] == ["start-up", "search", "final", "retrain"]
    assert "earlier" not in facts(plan(a_spec(tmp_path), TWO))["speed"]  # it was on digits


def test_plan_before_any_run_is_rough(tmp_path: Path) -> None:
    """55,000 images in 11 s, 20 trials at most, two at a time."""
    found = plan(a_spec(tmp_path, search={"early_stopping": None, "num_epochs": 2}), TWO)
    start_up, search, *_ = found.estimates
    assert (start_up.stage, start_up.expected_s) == ("start-up", START_UP_S + END_S)
    assert search.expected_s == pytest.approx(20 * 2 * 11 / 2)
    assert found.total and found.total.expected_s == sum(each.expected_s for each in found.estimates)
    times = [line for line in found.lines(price_per_hour=1.0) if line.startswith(("time", "cost"))]
    assert len(times) == 6 and all("roughly" in line for line in times)


def test_speed_is_measured_on_this_machine(tmp_path: Path) -> None:
    spec = a_spec(tmp_path)
    speed = measured_speed(spec)
    assert speed is not None and speed.is_rough and 1e-6 < speed.image_s < 0.1
    assert "rough" in speed.source
    if not torch.cuda.is_available():
        assert measured_speed(a_spec(tmp_path, search={"gpus_per_trial": 1.0})) is None


def test_start_up_is_learnt_from_a_run_on_ray(tmp_path: Path) -> None:
    local = make_up(made_up_spec(tmp_path, name="earlier"))
    assert start_up_s(local.state) is None
    tamper(local, lambda value: "ray" if value == "local" else value)
    known = start_up_s(RunDir(local.path).state)
    assert known is not None and known > 0
    start_up, *_ = plan(made_up_spec(tmp_path, name="next"), TWO).estimates
    assert start_up.expected_s == known + END_S


def test_plan_foresees_the_verdict(tmp_path: Path) -> None:
    def fact(num_seeds: int, **changes: Any) -> str:
        return facts(plan(a_spec(tmp_path, retrain={"seeds": list(range(num_seeds))}, **changes), TWO))["verdict"]

    assert fact(5).startswith(
        "by test loss; with 5 seeds each and 10,000 test images, expect 95 % intervals of about ±0.0"
    )
    assert "as on MNIST" not in fact(5)
    assert "too wide for 'equivalent', which needs ±0.0001 (report.equivalence_loss)" in fact(
        5, report={"equivalence_loss": 0.0001}
    )
    assert "too wide" not in fact(5, report={"equivalence_loss": 0.1})
    assert "never 'equivalent'" in fact(2)
    digits = fact(5, data={"name": "digits", "num_validation": 300}, report={"decided_by": "test_accuracy"})
    assert "360 test images" in digits and "if they spread as on MNIST" in digits
    assert "±0.1 (report.equivalence_points)" in digits, "an image is 0.28 points"


def test_early_stopping_shortens_the_expectation() -> None:
    """Rungs 1 and 4, beyond which one trial in four goes on, and three at least."""
    spec = a_spec(Path(), search={"num_epochs": 10, "num_trials": 20})
    assert expected_epochs(spec) == pytest.approx((20 * 1 + 5 * 3 + 3 * 6) / 20)
    assert expected_epochs(a_spec(Path(), search={"num_epochs": 10, "early_stopping": None})) == 10


def test_plan_counts_epochs_and_steps(tmp_path: Path) -> None:
    """Of 55,000 images, and of 60,000 in the retraining."""
    space = {"batch_size": {"choices": [100, 1000]}}
    final = {"top_k": 1, "seeds": 2, "num_epochs": 4}
    spec = a_spec(
        tmp_path,
        search={"num_trials": 6, "num_epochs": 3, "space": space},
        training={"ema": 0.1},
        final=final,
        retrain={"num_epochs": 5, "seeds": [0, 1]},
    )
    found = facts(plan(spec, TWO))
    assert found["fixed trials"].startswith("2 of these trials")
    assert found["work, search"] == "up to 18 epochs, 990 to 9,900 steps"
    assert found["work, final"] == "up to 16 epochs, 880 to 8,800 steps"
    assert found["work, retrain"] == "up to 20 epochs, 1,200 to 12,000 steps"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, "none"),
        ({"grace_epochs": 1, "reduction_factor": 3.0}, "decides after epoch 1, 3"),
        ({"grace_steps": 500}, "never: no trial stops before epoch 10, and search.num_epochs is 9"),
    ],
)
def test_plan_says_where_trials_stop(tmp_path: Path, rule: dict[str, Any] | None, expected: str) -> None:
    space = {"batch_size": {"choices": [1000]}}
    spec = a_spec(tmp_path, search={"num_epochs": 9, "early_stopping": rule, "space": space})
    assert facts(plan(spec, TWO))["early stopping"] == expected


def test_all_obstacles_are_named(tmp_path: Path) -> None:
    spec = a_spec(tmp_path, search={"gpus_per_trial": 1.0}, retrain={"workers": 9})
    found = plan(spec, TWO)
    assert any("search.gpus_per_trial" in line for line in found.lines())
    assert any("retrain.workers" in line for line in found.lines())
    assert found.estimates == []


def test_full_disk_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    (obstacle,) = plan(a_spec(tmp_path), TWO).obstacles
    assert str(tmp_path) in obstacle and "1,000 bytes are free" in obstacle


def test_upload_is_what_ray_packs(tmp_path: Path) -> None:
    (tmp_path / ".rayignore").write_text("/left_out/\n")
    (tmp_path / "left_out").mkdir()
    (tmp_path / "left_out" / "large").write_bytes(b"\0" * 1_000_000)
    assert upload_bytes(tmp_path) < 10_000
    (tmp_path / "left_out" / "large").rename(tmp_path / "large")
    assert upload_bytes(tmp_path) > 900  # packed, but there: a thousand to one
