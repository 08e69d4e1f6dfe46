"""The real servers of the trackers, each on a port of its own, and what their HTTP interfaces show of a run."""

import contextlib
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from tests.ray_head import BIN, free_ports

Points = dict[str, list[int]]  # the epochs that a curve has, by training


@contextlib.contextmanager
def server(log: Path, *command: str) -> Iterator[str]:
    """Start a server, and yield its address. {port} in the command is a free port."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command], stdout=output, stderr=output, cwd=log.parent
        )
        try:
            yield address
        finally:
            process.terminate()
            process.wait()


def answers(address: str) -> bool:
    """Report whether a server is up."""
    with contextlib.suppress(requests.RequestException):
        return requests.get(address, timeout=5).ok
    return False


def wait_for(holds: Callable[[], object]) -> None:
    """Wait until `holds()` is true, on a machine however busy."""
    deadline = time.monotonic() + 240
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def mlflow_server(folder: Path) -> contextlib.AbstractContextManager[str]:
    database = f"sqlite:///{folder / 'server.db'}"
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1"]
    return server(folder / "mlflow.log", *command, "--backend-store-uri", database)


def tensorboard_server(folder: Path, logdir: Path) -> contextlib.AbstractContextManager[str]:
    command = [str(BIN / "tensorboard"), "--port", "{port}", "--reload_interval", "1", "--logdir", str(logdir)]
    return server(folder / "tensorboard.log", *command)


def optuna_dashboard(folder: Path, study: Path) -> contextlib.AbstractContextManager[str]:
    command = [str(BIN / "optuna-dashboard"), "--host", "127.0.0.1", "--port", "{port}", f"sqlite:///{study}"]
    return server(folder / "optuna.log", *command)


# --- what they show


class Mlflow:
    """What an MLflow server shows of an experiment."""

    def __init__(self, address: str, experiment: str) -> None:
        self._api = f"{address}/api/2.0/mlflow"
        self._experiment = experiment

    def runs(self) -> list[dict[str, Any]]:
        found = requests.get(
            f"{self._api}/experiments/get-by-name", {"experiment_name": self._experiment}, timeout=30
        ).json()
        if "experiment" not in found:
            return []
        query: dict[str, Any] = {"experiment_ids": [found["experiment"]["experiment_id"]], "max_results": 1000}
        runs: list[dict[str, Any]] = (
            requests.post(f"{self._api}/runs/search", json=query, timeout=30).json().get("runs", [])
        )
        return runs

    def children(self) -> dict[str, dict[str, Any]]:
        """By the training's id; a training with two runs in MLflow is a fault."""
        named = [(tags_of(run).get("mnist_ray.training"), run) for run in self.runs()]
        children = {name: run for name, run in named if name}
        assert len(children) == sum(name is not None for name, _ in named)
        return children

    def parent(self) -> dict[str, Any]:
        (parent,) = [run for run in self.runs() if "mnist_ray.training" not in tags_of(run)]
        return parent

    def points(self, metric: str) -> Points:
        found = {}
        for name, run in self.children().items():
            query = {"run_id": run["info"]["run_id"], "metric_key": metric}
            history = requests.get(f"{self._api}/metrics/get-history", query, timeout=30).json()
            found[name] = [int(point["step"]) for point in history.get("metrics", [])]
        return found


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def metrics_of(run: dict[str, Any]) -> dict[str, float]:
    return {metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])}


def params_of(run: dict[str, Any]) -> dict[str, str]:
    return {param["key"]: param["value"] for param in run["data"].get("params", [])}


class TensorBoard:
    """What a TensorBoard server shows."""

    def __init__(self, address: str) -> None:
        self._plugins = f"{address}/data/plugin"

    def points(self, tag: str) -> Points:
        tags = requests.get(f"{self._plugins}/scalars/tags", timeout=30).json()
        found: Points = defaultdict(list)
        for run in (name for name, of_run in tags.items() if tag in of_run):
            query = {"run": run, "tag": tag}
            points = requests.get(f"{self._plugins}/scalars/scalars", query, timeout=30).json()
            found[run] = [int(step) for _, step, _ in points]
        return dict(found)

    def hyperparameters(self, *metrics: str) -> dict[str, tuple[dict[str, Any], dict[str, float], str]]:
        """Return the rows of the tab HPARAMS: the values, the last metrics and the status, by training."""
        statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        columns = [{"metric": {"group": "", "tag": metric}} for metric in metrics]
        query: dict[str, Any] = {"experimentName": "", "allowedStatuses": statuses, "colParams": columns}
        query |= {"startIndex": 0, "sliceSize": 1000}
        answer = requests.post(f"{self._plugins}/hparams/session_groups", json=query, timeout=30).json()
        rows = {}
        for group in answer["sessionGroups"]:
            (session,) = group["sessions"]
            last = {each["name"]["tag"]: each["value"] for each in group.get("metricValues", [])}
            rows[session["name"]] = (group["hparams"], last, session["status"])
        return rows


class OptunaDashboard:
    """What Optuna's dashboard shows of its only study."""

    def __init__(self, address: str) -> None:
        self._api = f"{address}/api/studies"

    def trials(self) -> list[dict[str, Any]]:
        studies = requests.get(self._api, timeout=30).json()["study_summaries"]
        if not studies:
            return []
        study = requests.get(f"{self._api}/{studies[0]['study_id']}", {"after": 0}, timeout=30).json()
        trials: list[dict[str, Any]] = study["trials"]
        return trials

    def points(self) -> Points:
        return {
            f"trial-{trial['number']:04d}": [int(point["step"]) for point in trial["intermediate_values"]]
            for trial in self.trials()
        }
