"""A search for secrets: put where a job has its secrets, looked for in everything that a job and Ray leave behind."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ray_head import REPOSITORY
from tests.s3_server import SECRET
from tools.cluster_network.cluster import NODE_SECRETS, Cluster
from tools.cluster_network.machines import Machine
from tools.cluster_network.verdicts import Verdicts

NAME = "canary"
CLIENT_SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-client-aws-3f61",
    "AWS_SESSION_TOKEN": "canary-client-session-3f61",
    "WANDB_API_KEY": "canary-client-wandb-3f61",
    "HF_TOKEN": "canary-client-hf-3f61",
    "DATABASE_URL": "postgresql://someone:canary-client-url-3f61@localhost/db",
}
IN_STORAGE = "canary-storage-3f61"
SHORT = (
    "search.num_trials=2", "search.num_epochs=1", "final=null", "retrain.num_epochs=250", "retrain.seeds=[0]",
    "retrain.baseline=false", "retrain.workers=2",
)  # fmt: skip
MNIST_RAY = (sys.executable, "-m", "mnist_ray.cli")


@dataclass
class CanaryJob:
    """A job that the client machine follows, and the file of its output."""

    process: "subprocess.Popen[bytes]"
    output: Path


@contextlib.contextmanager
def submitted(cluster: Cluster) -> Iterator[CanaryJob]:
    """Submit the job, and follow it from the client machine while the block lasts."""
    client = cluster.machines["client"]
    settings = [word for setting in SHORT for word in ("--set", setting)]
    output = client.home / "canary.log"
    spec = str(REPOSITORY / "jobs" / "quickstart.yaml")
    words = [*MNIST_RAY, "submit", spec, "--name", NAME, "--storage", cluster.storage, *settings]
    process = client.open(*words, output=output, changes={**cluster.client_environment, **CLIENT_SECRETS})
    try:
        yield CanaryJob(process, output)
    finally:
        process.kill()
        process.wait(timeout=60)


def look_for_secrets(cluster: Cluster, machines: Sequence[Machine], verdicts: Verdicts) -> None:
    """Look for the secrets on the client, on the machines, in the store and in the cluster's state."""
    secrets = secrets_of(cluster)
    patterns = cluster.machines["client"].home.parent / "patterns"
    patterns.write_text("\n".join(secrets.values()) + "\n")
    refuse_a_password(cluster, verdicts)
    fetch(cluster, verdicts)
    for machine in machines:
        look_on(machine, patterns, secrets, verdicts)
    look_in_store(cluster, patterns, verdicts)
    look_in_state(cluster, patterns, verdicts)


def secrets_of(cluster: Cluster) -> dict[str, str]:
    """Return all secrets by a description of each."""
    token = (cluster.machines["head"].home / ".ray" / "auth_token").read_text()
    client = {f"the client's {name}": value.split(":")[-1].split("@")[0] for name, value in CLIENT_SECRETS.items()}
    nodes = {f"the nodes' {name}": value for name, value in NODE_SECRETS.items()}
    return {"the token": token, "the store's key": SECRET, "in an address": IN_STORAGE, **client, **nodes}


def refuse_a_password(cluster: Cluster, verdicts: Verdicts) -> None:
    """Check that a storage address with a password is refused and not repeated."""
    spec = str(REPOSITORY / "jobs" / "quickstart.yaml")
    address = f"s3://someone:{IN_STORAGE}@tests/runs"
    done = cluster.machines["client"].run(
        *MNIST_RAY, "submit", spec, "--storage", address, changes=cluster.client_environment
    )
    output = done.stdout + done.stderr
    (cluster.machines["client"].home / "refused.log").write_text(output)
    refused = done.returncode == 2 and IN_STORAGE not in output
    result = output if refused else "not refused, or the password is shown"
    verdicts.record(refused, "client", "", "--storage s3://someone:PASSWORD@...", result)


def fetch(cluster: Cluster, verdicts: Verdicts) -> None:
    """Fetch the run, and look in the client's output and in the whole run with its exported files."""
    client = cluster.machines["client"]
    changes = {**cluster.client_environment, **CLIENT_SECRETS}
    done = client.run(*MNIST_RAY, "fetch", NAME, "--to", "fetched", changes=changes, timeout_s=300)
    (client.home / "fetch.log").write_text(done.stdout + done.stderr)
    folder = client.home / "fetched"
    is_fetched = (folder / NAME / "report.html").is_file()
    verdicts.record(is_fetched, "client", "", "fetches the run", done.stdout + done.stderr)
    paths = [folder, *client.home.glob("*.log")]
    report(verdicts, "client", "its output and the fetched run", hits_in(paths, secrets_of(cluster)))


@dataclass(frozen=True)
class Hits:
    """The result of a search for secrets."""

    num_searched: int
    hits: list[str]  # the file and the secret in it


def hits_in(paths: Sequence[Path], secrets: dict[str, str]) -> Hits:
    """Search files, and all files in folders."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    hits = []
    for file in files:
        content = file.read_bytes()
        hits += [f"{file.name}: {what}" for what, secret in secrets.items() if secret.encode() in content]
    return Hits(len(files), hits)


def look_on(machine: Machine, patterns: Path, secrets: dict[str, str], verdicts: Verdicts) -> None:
    """Search a machine's /tmp and shared memory, its command lines and the output of `ray start`."""
    look = ["sh", "-c", f"grep -r -l -a -F -f {patterns} /tmp /dev/shm; find /tmp /dev/shm -type f | wc -l"]
    machine.run("sh", "-c", f"head -n 1 {patterns} > /tmp/planted")
    *planted, _ = machine.run(*look).stdout.split()
    verdicts.record("/tmp/planted" in planted, machine.name, "", "a planted secret", "is found")
    machine.run("rm", "/tmp/planted")
    *hits, count = machine.run(*look).stdout.split()
    in_files = [
        f"{file}: {what}"
        for file in hits
        for what, secret in secrets.items()
        if machine.run("grep", "-q", "-a", "-F", secret, file).returncode == 0
    ]
    report(verdicts, machine.name, "Ray's files, shared memory", Hits(int(count), in_files))
    commands = machine.commands()
    in_commands = [
        f"{command[:60]}: {what}" for command in commands for what, secret in secrets.items() if secret in command
    ]
    report(verdicts, machine.name, "command lines", Hits(len(commands), in_commands))
    report(verdicts, machine.name, "the output of ray start", hits_in([machine.log], secrets))


READ = """
import io, json, sys, zipfile
from pathlib import Path
patterns = [line.encode() for line in Path(sys.argv[1]).read_text().split()]
def holds(content):
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content += b"".join(archive.read(name) for name in archive.namelist())
    except zipfile.BadZipFile:
        pass
    return any(pattern in content for pattern in patterns)
"""
STORE = """
import s3fs
store = s3fs.S3FileSystem()
files = {name: store.cat_file(name) for name in store.find(sys.argv[2])}
"""
STATE = """
from ray._private import ray_constants
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[2])
spaces = {value for name, value in vars(ray_constants).items() if name.startswith("KV_NAMESPACE")} | {None, b"fun"}
files = {f"{space} {key[:80]}": client.internal_kv_get(key, space, 10) or b""
         for space in spaces for key in client.internal_kv_keys(b"", space, 10)}
"""
PRINT = "print(json.dumps([len(files), [str(name) for name, content in files.items() if holds(content)]]))"


def look_in_store(cluster: Cluster, patterns: Path, verdicts: Verdicts) -> None:
    """Search every object of the run in the store."""
    hits = run_search(cluster, STORE, patterns, f"{cluster.storage}/{NAME}")
    report(verdicts, "store", "every object of the run", hits)


def look_in_state(cluster: Cluster, patterns: Path, verdicts: Verdicts) -> None:
    """Search the uploaded packages, unpacked, and Ray's data on jobs."""
    hits = run_search(cluster, STATE, patterns, f"{cluster.machines['head'].address}:6379")
    report(verdicts, "head", "every key of the cluster's state, packages unpacked", hits)


def run_search(cluster: Cluster, script: str, patterns: Path, source: str) -> Hits:
    """Run a script on the head that reads `files` from a source, and search them."""
    command = [sys.executable, "-c", READ + script + PRINT, str(patterns), source]
    done = cluster.machines["head"].run(*command, changes={"RAY_AUTH_MODE": "token"})
    return Hits(*json.loads(done.stdout.splitlines()[-1])) if done.stdout else Hits(0, [done.stderr[-500:]])


def report(verdicts: Verdicts, address: str, what: str, result: Hits) -> None:
    """Record that a search found nothing in something."""
    text = "; ".join(result.hits) or f"none in {result.num_searched}"
    verdicts.record(not result.hits and result.num_searched > 0, address, "", f"secrets in {what}", text)
