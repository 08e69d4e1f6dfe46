"""The Slurm job on a real Slurm of two nodes, each a network namespace with its own munged and slurmd. Needs root."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mnist_ray import RunDir
from mnist_ray.config import Stage
from tests.ray_head import BIN, REPOSITORY
from tools.cluster_network.machines import Machine, network, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/sbin/slurmd").exists(), reason="needs slurmctld, slurmd, slurm-client, munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(REPOSITORY.is_relative_to("/tmp"), reason="each node has a /tmp of its own"),
]

NUM_CPUS = 2
SETTINGS = (
    "name=small", "search.num_trials=3", "search.num_epochs=6", "search.early_stopping=null", "final=null",
    "search.max_concurrent_trials=1", "retrain.num_epochs=60", "retrain.workers=2", "retrain.seeds=[0]",
    "retrain.baseline=false",
)  # fmt: skip
# Names of nodes that no DNS knows; no cgroups, which namespaces lack; processes are found by their parents.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost=node1({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=/tmp/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir=/tmp/slurmd-%n
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """Two nodes, the first of which is the controller too."""

    folder: Path
    nodes: dict[str, Machine]

    def command(self, *words: str | Path, **changes: str) -> str:
        """Return the output of a command on the first node. Raises AssertionError where the command fails."""
        inside: list[str | Path] = ["sh", "-c", 'cd "$0" && exec "$@"', REPOSITORY]
        done = self.nodes["node1"].run(*inside, *words, changes=changes)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *words: str, options: tuple[str, ...] = (), **changes: str) -> str:
        """Submit the job file, with room for it on these nodes, and return the job's number."""
        own = [f"--output={self.folder}/job-%j.log", f"--cpus-per-task={NUM_CPUS}", "--mem=3G", "--parsable"]
        changes = {"MNIST_RAY_ENVIRONMENT": str(BIN.parent), "MNIST_RAY_STORAGE": str(self.storage), **changes}
        return self.command("sbatch", *own, *options, "cluster/slurm/job.sbatch", *words, **changes).strip()

    @property
    def storage(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> RunDir:
        return RunDir(self.storage / "small")

    def start_now(self, job: str) -> None:
        """Start a job that is back in the queue; Slurm itself lets two minutes pass."""
        self.wait_until(job, "the end of the first start", "JobState", "PENDING", 60)
        self.command("scontrol", "update", f"JobId={job}", "StartTime=now")

    def fact(self, job: str, name: str) -> str:
        """Return one of the facts of `scontrol show job`."""
        facts = self.command("scontrol", "--oneliner", "show", "job", job).split()
        return dict(fact.partition("=")[::2] for fact in facts)[name]

    def log(self, job: str) -> str:
        file = self.folder / f"job-{job}.log"
        return file.read_text() if file.exists() else ""

    def wait_until(self, job: str, what: str, name: str, value: str, seconds: float) -> None:
        try:
            wait_for(what, lambda: self.fact(job, name) == value, seconds)
        except RuntimeError as error:
            details = self.command("scontrol", "show", "job", job)
            raise AssertionError(f"{error}\n{details}\n{self.log(job)}") from None

    def wait_for_epochs(self, job: str, stage: Stage, count: int) -> None:
        """Return once a stage of the run has so many epochs."""

        def are_there() -> bool:
            assert self.fact(job, "JobState") in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), self.log(job)
            return sum(training.epochs_done for training in self.run.state.trainings(stage)) >= count

        wait_for(f"{count} epochs ({stage})", are_there, 600)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="mnist-ray-slurm-", dir="/var/tmp"))
    key, configuration = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (folder / "state").mkdir(mode=0o700)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    try:
        with network(folder, ["node1", "node2"]) as nodes:
            lines = [
                f"NodeName={name} NodeAddr={node.address} CPUs={NUM_CPUS} RealMemory=4000"
                for name, node in nodes.items()
            ]
            configuration.write_text(
                CONFIGURATION.format(controller=nodes["node1"].address, folder=folder, nodes="\n".join(lines))
            )
            for node in nodes.values():
                node.environment = {"SLURM_CONF": str(configuration)}
                node.start(
                    "/usr/sbin/munged", "--foreground", "--force", f"--key-file={key}", "--socket=/tmp/munge",
                    "--pid-file=/tmp/munge.pid", "--log-file=/tmp/munge.log", "--seed-file=/tmp/munge.seed",
                )  # fmt: skip
            for node in nodes.values():
                wait_for("munge", lambda node=node: node.run("test", "-S", "/tmp/munge").returncode == 0, 30)  # type: ignore[misc]
            nodes["node1"].start("/usr/sbin/slurmctld", "-D")
            for name, node in nodes.items():
                node.run("mkdir", f"/tmp/slurmd-{name}")
                node.start("/usr/sbin/slurmd", "-D")
            started = Slurm(folder, nodes)
            wait_for("two nodes of Slurm", lambda: started.command("sinfo", "-ho", "%t %D").strip() == "idle 2", 60)
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settings() -> list[str]:
    return ["jobs/quickstart.yaml", *(word for setting in SETTINGS for word in ("--set", setting))]


def left_behind(slurm: Slurm) -> list[str]:
    """Return the temporary folders and tokens of jobs that have ended, and their processes."""
    found = [str(path) for path in slurm.storage.glob(".token*")]
    for name, node in slurm.nodes.items():
        found += [f"{name}: {path}" for path in node.run("sh", "-c", "ls -d /tmp/mnist-ray*").stdout.split()]
        found += [
            f"{name}: {command}" for command in node.commands() if "raylet" in command or "jobs/run.py" in command
        ]
    return found


@pytest.mark.timeout(2400)
def test_stopped_job_goes_on(slurm: Slurm) -> None:
    """The signal of the time limit requeues the job, so does Slurm by itself; scancel ends it, and sbatch goes on."""
    job = slurm.submit(*settings())
    slurm.wait_for_epochs(job, "search", 8)  # in the second trial
    slurm.command("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_until(job, "a requeue", "Restarts", "1", 60)
    slurm.start_now(job)
    assert "run the same command again" in slurm.log(job)
    first = slurm.run.state.trainings("search")[0]
    assert first.status == "complete"
    assert left_behind(slurm) == []

    slurm.wait_for_epochs(job, "search", 12)
    slurm.command("scontrol", "requeue", job)  # as after a preemption
    slurm.wait_until(job, "a second requeue", "Restarts", "2", 60)
    slurm.start_now(job)

    slurm.wait_for_epochs(job, "retrain", 4)
    slurm.command("scancel", job)
    slurm.wait_until(job, "the end", "JobState", "CANCELLED", 240)
    assert slurm.fact(job, "Restarts") == "2"

    again = slurm.submit(*settings())
    slurm.wait_until(again, "the end", "JobState", "COMPLETED", 900)
    assert slurm.fact(again, "ExitCode") == "0:0"
    assert [training.epochs_done for training in slurm.run.state.trainings("search")] == [6, 6, 6]
    assert slurm.run.state.trainings("search")[0] == first
    assert json.loads((slurm.run.path / "result.json").read_text())
    assert slurm.run.state.tested is not None
    with contextlib.suppress(RuntimeError):
        wait_for("the end of all processes", lambda: left_behind(slurm) == [], 120)
    assert left_behind(slurm) == []


@pytest.mark.timeout(300)
def test_head_that_cannot_start_fails_the_job(slurm: Slurm) -> None:
    listener = "import socket, time; s = socket.create_server(('', 7000)); time.sleep(200)"
    process = slurm.nodes["node1"].open(BIN / "python", "-c", listener, output=slurm.folder / "listener.log")
    try:
        job = slurm.submit(*settings(), MNIST_RAY_PORT="7000")
        slurm.wait_until(job, "the end", "JobState", "FAILED", 240)
    finally:
        process.kill()
        process.wait()
    assert slurm.fact(job, "ExitCode") == "4:0", slurm.log(job)
    assert "did not start" in slurm.log(job)


@pytest.mark.timeout(120)
def test_mistakes_fail_at_once(slurm: Slurm) -> None:
    without_spec = slurm.submit()
    without_ray = slurm.submit("jobs/quickstart.yaml", MNIST_RAY_ENVIRONMENT="/nowhere")
    for job, message in ((without_spec, "give a job spec"), (without_ray, "/nowhere has no ray")):
        slurm.wait_until(job, "the end", "JobState", "FAILED", 60)
        assert slurm.fact(job, "ExitCode") == "2:0"
        assert message in slurm.log(job)
