"""The real MNIST job on machines with addresses of their own, submitted from another one; then with machines lost.

    python -m tools.cluster_network --data-dir FOLDER [--security]        as root; needs iproute2, openssh-server

A head without work, two workers, a store, and a client that has the token and reaches the head by SSH alone.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mnist_ray.record.event_log import EventLog
from mnist_ray.record.events import TrainingEnded
from mnist_ray.record.rundir import RunDir
from tests.ray_head import REPOSITORY
from tools.cluster_network.cluster import Cluster, started_cluster
from tools.cluster_network.security import print_security

SHORT = (
    "search.num_trials=6", "search.num_epochs=2", "final=null", "retrain.num_epochs=6", "retrain.seeds=[0]",
    "retrain.baseline=false", "retrain.workers=2",
)  # fmt: skip
PROCESS_TITLES = {"search": "ImplicitFunc", "retraining": "RayTrainWorker"}  # parts of the titles that Ray gives
JOB_LIMIT_S = 900.0


def main() -> int:
    """Run the job undisturbed and with losses, then the security check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with MNIST's files")
    parser.add_argument("--security", action="store_true", help="only the security check")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces need root: run it with sudo, by the full path of this Python")
    if REPOSITORY.is_relative_to("/tmp"):
        parser.error(f"each machine has a /tmp of its own, in which {REPOSITORY} is not: use a checkout elsewhere")
    folder = Path(tempfile.mkdtemp(prefix="mnist-ray-network-", dir="/var/tmp"))
    print(f"logs lie in {folder}", flush=True)
    try:
        with started_cluster(folder, options.data_dir.resolve()) as cluster:
            if options.security:
                return print_security(cluster)
            undisturbed(cluster)
            with_losses(cluster)
            return print_security(cluster)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def undisturbed(cluster: Cluster) -> None:
    """Submit the job, fetch the run and check it."""
    began = time.monotonic()
    working = run_job(cluster, "undisturbed", lambda log: None)
    for part in PROCESS_TITLES:
        workers = {machine for machine, at in working if at == part}
        check(f"{part} on both workers", workers == {"worker1", "worker2"}, str(sorted(workers)))
    run = fetched(cluster, "undisturbed")
    check_run(run, num_failures=0)
    print(f"undisturbed: {time.monotonic() - began:.0f} s from submit to the fetched model\n", flush=True)


def with_losses(cluster: Cluster) -> None:
    """Submit the job, lose a worker in the search and the other in the retraining, fetch the run and check it."""
    began = time.monotonic()
    losses = Losses(cluster)
    run_job(cluster, "losses", losses.look)
    check("a worker was lost in the search and one in the retraining", losses.stages == ["search", "retraining"], "")
    run = fetched(cluster, "losses")
    check_run(run, num_failures=2)
    for training_id, ended_at in losses.ended_before.items():
        events = [each for _, each in EventLog(run.paths.record).read_new() if isinstance(each, TrainingEnded)]
        same = [each.at for each in events if each.id == training_id]
        check(f"{training_id}, which had ended, was not touched", same == [ended_at], str(same))
    print(f"with two workers lost: {time.monotonic() - began:.0f} s\n", flush=True)


class Losses:
    """The loss of a worker when two trials have ended, and of the other in the retraining; each is replaced."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.stages: list[str] = []
        self.ended_before: dict[str, str] = {}

    def look(self, log: str) -> None:
        """Lose a worker where the job's log says that the time has come."""
        num_ended = sum(word in line for line in log.splitlines() for word in (" complete after", " pruned after"))
        if num_ended >= 2 and not self.stages:
            self.ended_before = self._cluster.ended_trials("losses")
            self._replace("search", "worker1", "spare1")
        if "retrain: selected (" in log and self.stages == ["search"]:
            self._replace("retraining", "worker2", "spare2")

    def _replace(self, stage: str, lost: str, spare: str) -> None:
        self.stages.append(stage)
        print(f"{time.strftime('%H:%M:%S')} {lost} is lost in the {stage}, {spare} joins", flush=True)
        self._cluster.machines[lost].lose()
        self._cluster.join(spare)


def run_job(cluster: Cluster, name: str, look: Callable[[str], None]) -> set[tuple[str, str]]:
    """Submit the job and follow it to its end; call `look` with the log twice a second.

    Returns pairs of a machine and the part of the job that the machine worked on.
    """
    client = cluster.machines["client"]
    output = client.home / f"{name}.log"
    settings = [word for setting in SHORT for word in ("--set", setting)]
    spec = str(REPOSITORY / "jobs" / "mnist.yaml")
    arguments = ["submit", spec, "--name", name, "--storage", cluster.storage, *settings]
    process = client.open(*MNIST_RAY, *arguments, output=output, changes=cluster.client_environment)
    working: set[tuple[str, str]] = set()
    deadline = time.monotonic() + JOB_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        look(output.read_text())
        working |= set(working_machines(cluster))
        time.sleep(0.5)
    process.kill()
    print("\n".join(f"    {line}" for line in output.read_text().splitlines()), flush=True)
    check(f"{name}: submit ends with the job's own code, 0", process.wait(60) == 0, str(process.returncode))
    return working


MNIST_RAY = (sys.executable, "-m", "mnist_ray.cli")


def working_machines(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield pairs of a machine and the part of the job that the machine works on now."""
    for name, machine in cluster.machines.items():
        commands = machine.commands() if name.startswith(("worker", "spare")) else []
        for part, title in PROCESS_TITLES.items():
            if any(command.startswith("ray::") and title in command for command in commands):
                yield name, part


def fetched(cluster: Cluster, name: str) -> RunDir:
    """Fetch a run through the cluster, then from the store with a key to the store; check that the records agree."""
    client = cluster.machines["client"]
    folders = []
    for to, environment in (("through", {}), ("direct", cluster.store_environment)):
        arguments = ["fetch", name, "--to", to]
        done = client.run(*MNIST_RAY, *arguments, timeout_s=300, changes={**cluster.client_environment, **environment})
        check(f"{name}: fetched ({to})", done.returncode == 0, done.stdout + done.stderr)
        folders.append(client.home / to / name)
    files = [[path.read_bytes() for path in sorted((folder / "record").glob("*.json"))] for folder in folders]
    check(f"{name}: both ways bring the same {len(files[0])} files of events", files[0] == files[1], "")
    for file in ("report.html", "results.csv", "model/model.safetensors"):
        check(f"{name}: {file} is there", (folders[0] / file).is_file(), "")
    return RunDir(folders[0])


def check_run(run: RunDir, num_failures: int) -> None:
    """Check that every training has each epoch once, and the accuracy on the test."""
    num_epochs = {"search": 2, "retrain": 6}
    trainings = run.state.trainings("search") + run.state.trainings("retrain")
    check("6 trials and a retraining ended", len([each for each in trainings if each.ended]) == 7, str(len(trainings)))
    for training in trainings:
        epochs = [metrics.epoch for metrics in training.history]
        is_whole = epochs == list(range(1, len(epochs) + 1))
        is_full = training.status != "complete" or len(epochs) == num_epochs[training.stage]
        if not (is_whole and is_full and training.status in ("complete", "pruned")):
            check(f"{training.id} has each epoch once", False, f"{training.status} {epochs}")
    failures = sum(training.ended.num_failures for training in trainings if training.ended)
    check(f"starts after a loss: {failures}", failures == num_failures or 0 < failures <= num_failures, str(failures))
    (tests,) = run.state.tested.scores.values() if run.state.tested else [{}]
    accuracy = tests["test"].score.accuracy if tests else 0.0
    check(f"tested: {100 * accuracy:.2f} %", accuracy > 0.97, "")


def check(what: str, holds: bool, details: str) -> None:
    """Print a verdict; exit where a condition does not hold."""
    print(f"{'ok ' if holds else 'BAD'} {what}{'' if holds else ': ' + details}", flush=True)
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
