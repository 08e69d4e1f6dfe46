"""A plan says what a job would take from what is known, and what is in its way, without starting anything."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.errors import DataError, SpecError
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.pipeline.plan import Plan, expected_epochs, plan
from mnist_ray.ray_backend.compat import upload_bytes
from tests.report.made_up import made_up_spec, make_up

TWO = Capacity(2, 0)


def a_spec(storage: Path, **changes: Any) -> JobSpec:
    data = {"name": "mnist", "dir": str(storage)} | changes.pop("data", {})
    return parse_spec({"data": data, "storage": str(storage), **changes})


def facts(found: Plan) -> dict[str, str]:
    return dict(found.facts)


def test_plan_names_slots_batches_and_data(tmp_path: Path) -> None:
    found = plan(a_spec(tmp_path, retrain={"workers": 2, "seeds": [0, 1]}), TWO)
    assert facts(found)["trials"] == "20, 2 at once, each 1 CPUs and 0 GPUs"
    assert facts(found)["retraining"].startswith("4 trainings, 1 side by side, each on 2 workers")
    assert "retrain.workers=1 is faster here" in facts(found)["retraining"]
    assert "128: 64" in facts(found)["batch per worker"] and "512: 256" in facts(found)["batch per worker"]
    assert "not there, downloaded" in facts(found)["data"]
    assert found.estimates == [] and "benchmark" in facts(found)["speed"]
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
    assert facts(found)["retraining"].startswith("2 trainings, 2 side by side, each on 1 to 8 workers")
    assert "128: 16 to 128, 256: 32 to 256" in facts(found)["batch per worker"]
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
    assert [each.stage for each in found.estimates] == ["search", "final", "retrain"]
    assert "not known" in facts(plan(a_spec(tmp_path), TWO))["speed"]  # it was on digits


def test_plan_foresees_the_verdict(tmp_path: Path) -> None:
    def fact(num_seeds: int, **changes: Any) -> str:
        return facts(plan(a_spec(tmp_path, retrain={"seeds": list(range(num_seeds))}, **changes), TWO))["verdict"]

    assert fact(5).startswith("by test loss; 95 % interval of about ±0.00")
    assert "5 seeds each and 10,000 test images" in fact(5) and "as on MNIST" not in fact(5)
    assert "'equivalent' cannot come out, since report.equivalence_loss is 0.0001" in fact(
        5, report={"equivalence_loss": 0.0001}
    )
    assert "cannot come out" not in fact(5, report={"equivalence_loss": 0.1})
    assert "never 'equivalent'" in fact(2)
    digits = fact(5, data={"name": "digits", "num_validation": 300}, report={"decided_by": "test_accuracy"})
    assert "360 test images, if they spread as on MNIST" in digits
    assert "since report.equivalence_points is 0.1" in digits, "an image is 0.28 points"


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
    assert found["fixed trials"].startswith("2 of them")
    assert found["work, search"] == "18 epochs at most, 990 to 9,900 steps"
    assert found["work, final"] == "16 epochs at most, 880 to 8,800 steps"
    assert found["work, retrain"] == "20 epochs at most, 1,200 to 12,000 steps"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, "none"),
        ({"grace_epochs": 1, "reduction_factor": 3.0}, "after epoch 1, 3"),
        ({"grace_steps": 500}, "none: its grace of 10 epochs leaves none of search.num_epochs 9"),
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
