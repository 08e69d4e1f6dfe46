"""Makes the tables of docs/results.md: python -m experiments.results

Reads docs/results/ alone: for each job that was run its result.json and results.csv, as the run's folder has them, and
the CSV files of the studies transfer, ablation and robustness. A table whose file is not there says so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import ablation, robustness, transfer
from mnist_ray.benchmarks.findings import put_between
from mnist_ray.config import TrainingConfig

PAGE = Path("docs/results.md")
FOLDER = Path("docs/results")
JOBS = {  # by the name of the run: the spec in the tables; the first one trained the recipe for all
    "mnist": "`jobs/mnist.yaml`, first version",
    "mnist-2": "`jobs/mnist.yaml`",
    "mnist-best": "`jobs/mnist-best.yaml`",
}
PUBLISHED = {"accuracy": 0.9931, "loss": 0.0214}  # the classifier that the recipe comes from (README.md)


def main() -> None:
    for name, make in TABLES.items():
        put_between(PAGE, *markers(name), make())


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def test_table() -> str:
    """Return the test results: a row for each tested configuration and each ensemble of its seeds."""
    rows: list[dict[str, Any]] = []
    first, *_ = JOBS
    for job, spec in JOBS.items():
        if job not in _run_jobs():
            rows.append({"model": spec, "seeds": "not finished"})
            continue
        outcome, trainings = _outcome(job), _trainings(job)
        for role in ("baseline", "selected", "selected = baseline"):
            tested = trainings[(trainings["role"] == role) & trainings["test_loss"].notna()]
            if len(tested) and not (role == "baseline" and job != first):
                name = {
                    "baseline": "the recipe as published",
                    "selected": spec,
                    "selected = baseline": f"the recipe as published, selected by {spec}",
                }[role]
                rows.append(_row(name, tested))
        for ensemble in outcome["ensembles"]:
            if ensemble["side"].startswith("selected"):
                scores = ensemble["scores"]
                of_recipe = ", which is the recipe's" if "baseline" in ensemble["side"] else ""
                name = f"{spec}: ensemble{of_recipe}"
                rows.append(
                    {
                        "model": name,
                        "seeds": len(ensemble["seeds"]),
                        "accuracy": _percent(scores["test_accuracy"]),
                        "loss": f"{scores['test_loss']:.4f}",
                    }
                )
    claimed: dict[str, Any] = {"model": "what the recipe's author reports", "seeds": 1}
    claimed |= {"accuracy": _percent(PUBLISHED["accuracy"]), "loss": f"{PUBLISHED['loss']:.4f}"}
    return _markdown(pd.DataFrame([claimed, *rows]))


def verdict_table() -> str:
    """Return each job's verdict, with the difference to the recipe in loss and in accuracy."""
    rows = []
    for job in _run_jobs():
        verdict = _outcome(job)["verdict"]
        for name, judged in verdict["quantities"].items():
            found, scale = judged["difference"], 100 if name == "test_accuracy" else 1
            digits = 3 if name == "test_accuracy" else 5
            low, high = (scale * found["interval"][end] for end in ("low", "high"))
            rows.append(
                {
                    "job": JOBS[job],
                    "quantity": "test accuracy, points" if name == "test_accuracy" else "test loss",
                    "selected less recipe": f"{scale * found['value']:+.{digits}f}",
                    "95 % interval": f"{low:+.{digits}f} to {high:+.{digits}f}",
                    "by itself": judged["outcome"],
                    "the job's verdict": verdict["kind"] if name == verdict["decided_by"] else "",
                }
            )
    return _markdown(pd.DataFrame(rows))


def configuration_table() -> str:
    """Return what each job selected, from how many configurations."""
    rows = []
    for job in _run_jobs():
        outcome, trainings = _outcome(job), _trainings(job)
        values = outcome["selected"]["hyperparameters"]
        final = trainings[trainings["stage"] == "final"]
        rows.append(
            {
                "job": JOBS[job],
                "configurations looked at": int((trainings["stage"] == "search").sum()),
                "stopped early": int((trainings["status"] == "pruned").sum()),
                "finalists and the recipe": final["id"].str.replace(r"-seed-\d+$", "", regex=True).nunique(),
                "selected": ", ".join(f"{key} {_short(value)}" for key, value in values.items()),
            }
        )
    return _markdown(pd.DataFrame(rows))


def final_table() -> str:
    """Return the means of the final rounds, on validation."""
    rows = []
    for job in _run_jobs():
        trainings = _trainings(job)
        final = trainings[trainings["stage"] == "final"]
        finalist = final["id"].str.extract(r"final-(.*)-seed-\d+$")[0]
        for name, part in final.groupby(finalist, sort=False):
            rows.append(
                {
                    "job": JOBS[job],
                    "finalist": name,
                    "seeds": len(part),
                    "validation loss": f"{part['val_loss'].mean():.4f}",
                    "validation accuracy": _percent(part["val_accuracy"].mean()),
                }
            )
    return _markdown(pd.DataFrame(rows))


def robustness_table() -> str:
    """Return the accuracy of the tested models on changed images."""
    path = FOLDER / "robustness.csv"
    if not path.exists():
        return "Not run yet: `python -m experiments.robustness RUN ...`."
    return robustness.robustness_table(pd.read_csv(path)).to_markdown(index=False)


def _of_study(
    name: str, command: str, is_finished: Callable[[pd.DataFrame], bool], make: Callable[[pd.DataFrame], pd.DataFrame]
) -> Callable[[], str]:
    def table() -> str:
        path = FOLDER / f"{name}.csv"
        rows = pd.read_csv(path) if path.exists() else None
        if rows is None or not is_finished(rows):
            there = 0 if rows is None else rows.groupby(["part", *TrainingConfig.model_fields], dropna=False).ngroups
            return f"Not finished ({there} trainings are there): `{command}` goes on."
        return make(rows).to_markdown()

    return table


TRANSFER = "python -m experiments.transfer"
ABLATION = "python -m experiments.ablation docs/results/ablation.yaml"

TABLES: dict[str, Callable[[], str]] = {
    "test": test_table,
    "verdicts": verdict_table,
    "configurations": configuration_table,
    "final": final_table,
    "transfer": _of_study("transfer", TRANSFER, transfer.is_finished, transfer.transfer_table),
    "rungs": _of_study("transfer", TRANSFER, transfer.is_finished, transfer.rung_table),
    "transfer of digits": _of_study(
        "transfer-digits", f"{TRANSFER} --digits", transfer.is_finished, transfer.transfer_table
    ),
    "rungs of digits": _of_study("transfer-digits", f"{TRANSFER} --digits", transfer.is_finished, transfer.rung_table),
    "ablation": _of_study("ablation", ABLATION, ablation.is_finished, ablation.ablation_table),
    "robustness": robustness_table,
}


def _run_jobs() -> list[str]:
    return [job for job in JOBS if (FOLDER / job / "result.json").exists()]


def _outcome(job: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / job / "result.json").read_text())
    return content


def _trainings(job: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / job / "results.csv")


def _row(name: str, tested: pd.DataFrame) -> dict[str, Any]:
    return {
        "model": name,
        "seeds": len(tested),
        "accuracy": _percent(tested["test_accuracy"].mean()),
        "worst seed": _percent(tested["test_accuracy"].min()),
        "loss": f"{tested['test_loss'].mean():.4f}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(rows: pd.DataFrame) -> str:
    return rows.fillna("").to_markdown(index=False, disable_numparse=True) if len(rows) else "Not run yet."


if __name__ == "__main__":
    main()
