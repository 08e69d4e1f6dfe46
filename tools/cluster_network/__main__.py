"""The real MNIST job on machines with addresses of their own, submitted from one more; then with machines lost.

    python -m tools.cluster_network --data-dir FOLDER [--security]        as root; needs iproute2, openssh-server

A head without work, two workers, a store, and a client that knows nothing but the token and the way to the head by SSH.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mnist_ray import RunDir
from tests.ray_head import REPOSITORY
from tools.cluster_network.cluster import Cluster, cluster
from tools.cluster_network.security import print_security

SHORT = (
    "search.num_trials=6", "search.num_epochs=2", "confirm=null", "retrain.num_epochs=6", "retrain.seeds=[0]",
    "retrain.baseline=false", "retrain.workers=2",
)  # fmt: skip
AT_WORK = {"search": "ImplicitFunc", "retraining": "RayTrainWorker"}  # in what Ray calls its processes
CODES_S = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="has MNIST's files")
    parser.add_argument("--security", action="store_true", help="only what a stranger can do")
    parser.add_argument("--keep", action="store_true", help="leave the logs where they are")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces need root: run it with sudo, by the full path of this Python")
    if REPOSITORY.is_relative_to("/tmp"):
        parser.error(f"each machine has a /tmp of its own, in which {REPOSITORY} is not: use a checkout elsewhere")
    folder = Path(tempfile.mkdtemp(prefix="mnist-ray-network-", dir="/var/tmp"))
    print(f"logs lie in {folder}", flush=True)
    try:
        with cluster(folder, options.data_dir.resolve()) as made:
            if options.security:
                return print_security(made)
            undisturbed(made)
            with_losses(made)
            return print_security(made)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def undisturbed(made: Cluster) -> None:
    began = time.monotonic()
    seen = run_job(made, "undisturbed", lambda log: None)
    for part in AT_WORK:
        workers = {machine for machine, at in seen if at == part}
        check(f"{part} on both workers", workers == {"worker1", "worker2"}, str(sorted(workers)))
    run = fetched(made, "undisturbed")
    check_run(run, num_failures=0)
    print(f"undisturbed: {time.monotonic() - began:.0f} s from submit to the fetched model\n", flush=True)


def with_losses(made: Cluster) -> None:
    began = time.monotonic()
    losses = Losses(made)
    run_job(made, "losses", losses.look)
    check("a worker was lost in the search and one in the retraining", losses.stages == ["search", "retraining"], "")
    run = fetched(made, "losses")
    check_run(run, num_failures=2)
    for training_id, event in losses.ended_before.items():
        same = [each for each in run.events() if each["kind"] == "ended" and each["id"] == training_id]
        check(f"{training_id}, which had ended, was not touched", [each["at"] for each in same] == [event], "")
    print(f"with two workers lost: {time.monotonic() - began:.0f} s\n", flush=True)


class Losses:
    """Loses a worker when two trials have ended, and the other when the retraining goes; each is replaced."""

    def __init__(self, made: Cluster) -> None:
        self._made = made
        self.stages: list[str] = []
        self.ended_before: dict[str, str] = {}

    def look(self, log: str) -> None:
        num_ended = sum(word in line for line in log.splitlines() for word in (" complete after", " pruned after"))
        if num_ended >= 2 and not self.stages:
            self.ended_before = self._made.ended_trials("losses")
            self._replace("search", "worker1", "spare1")
        if "retrain: choice" in log and self.stages == ["search"]:
            self._replace("retraining", "worker2", "spare2")

    def _replace(self, stage: str, lost: str, spare: str) -> None:
        self.stages.append(stage)
        print(f"{time.strftime('%H:%M:%S')} {lost} is lost in the {stage}, {spare} joins", flush=True)
        self._made.machines[lost].lose()
        self._made.join(spare)


def run_job(made: Cluster, name: str, look: Callable[[str], None]) -> set[tuple[str, str]]:
    """Submit and follow to the end; `look` is shown the log several times a second. Returns who was at work in what."""
    client = made.machines["client"]
    output = client.home / f"{name}.log"
    settings = [word for setting in SHORT for word in ("--set", setting)]
    spec = str(REPOSITORY / "jobs" / "mnist.yaml")
    arguments = ["submit", spec, "--name", name, "--storage", made.storage, *settings]
    process = client.open(*MNIST_RAY, *arguments, output=output, changes=made.address)
    seen: set[tuple[str, str]] = set()
    deadline = time.monotonic() + CODES_S
    while process.poll() is None and time.monotonic() < deadline:
        look(output.read_text())
        seen |= set(at_work(made))
        time.sleep(0.5)
    process.kill()
    print("\n".join(f"    {line}" for line in output.read_text().splitlines()), flush=True)
    check(f"{name}: submit ends with the job's own code, 0", process.wait(60) == 0, str(process.returncode))
    return seen


MNIST_RAY = (sys.executable, "-m", "mnist_ray.cli")


def at_work(made: Cluster) -> Iterator[tuple[str, str]]:
    for name, machine in made.machines.items():
        commands = machine.commands() if name.startswith(("worker", "spare")) else []
        for part, title in AT_WORK.items():
            if any(command.startswith("ray::") and title in command for command in commands):
                yield name, part


def fetched(made: Cluster, name: str) -> RunDir:
    """Through the cluster by a client that cannot reach the store, then from the store: the same record."""
    client = made.machines["client"]
    folders = []
    for to, environment in (("through", {}), ("direct", made.store_environment)):
        arguments = ["fetch", name, "--to", to]
        done = client.run(*MNIST_RAY, *arguments, timeout_s=300, changes={**made.address, **environment})
        check(f"{name}: fetched ({to})", done.returncode == 0, done.stdout + done.stderr)
        folders.append(client.home / to / name)
    events = [[path.read_bytes() for path in sorted((folder / "record").glob("*.json"))] for folder in folders]
    check(f"{name}: both ways bring the same {len(events[0])} events", events[0] == events[1], "")
    for file in ("report.html", "results.csv", "model/model.safetensors"):
        check(f"{name}: {file} is there", (folders[0] / file).is_file(), "")
    return RunDir(folders[0])


def check_run(run: RunDir, num_failures: int) -> None:
    spec_epochs = {"search": 2, "retrain": 6}
    trainings = run.trainings("search") + run.trainings("retrain")
    check("6 trials and a retraining ended", len([each for each in trainings if each.ended]) == 7, str(len(trainings)))
    for training in trainings:
        epochs = [row["epoch"] for row in training.history]
        whole = epochs == list(range(1, len(epochs) + 1))
        full = training.status != "complete" or len(epochs) == spec_epochs[training.stage]
        if not (whole and full and training.status in ("complete", "pruned")):
            check(f"{training.id} has each epoch once", False, f"{training.status} {epochs}")
    failures = sum(training.ended["num_failures"] for training in trainings if training.ended)
    check(f"starts after a loss: {failures}", failures == num_failures or 0 < failures <= num_failures, str(failures))
    (score,) = (run.stage("tested") or {"scores": {}})["scores"].values()
    check(f"tested: {100 * score['test_accuracy']:.2f} %", score["test_accuracy"] > 0.97, "")


def check(what: str, holds: bool, seen: str) -> None:
    print(f"{'ok ' if holds else 'BAD'} {what}{'' if holds else ': ' + seen}", flush=True)
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
