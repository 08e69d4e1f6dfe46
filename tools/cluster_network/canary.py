"""Secrets are put where a job's secrets are, and looked for wherever a job and Ray leave anything."""

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
    "search.num_trials=2", "search.num_epochs=1", "confirm=null", "retrain.num_epochs=250", "retrain.seeds=[0]",
    "retrain.baseline=false", "retrain.workers=2",
)  # fmt: skip
MNIST_RAY = (sys.executable, "-m", "mnist_ray.cli")


@dataclass
class CanaryJob:
    process: "subprocess.Popen[bytes]"
    output: Path


@contextlib.contextmanager
def submitted(made: Cluster) -> Iterator[CanaryJob]:
    """Followed from the client machine while the block lasts."""
    client = made.machines["client"]
    settings = [word for setting in SHORT for word in ("--set", setting)]
    output = client.home / "canary.log"
    spec = str(REPOSITORY / "jobs" / "quickstart.yaml")
    words = [*MNIST_RAY, "submit", spec, "--name", NAME, "--storage", made.storage, *settings]
    process = client.open(*words, output=output, changes={**made.address, **CLIENT_SECRETS})
    try:
        yield CanaryJob(process, output)
    finally:
        process.kill()
        process.wait(timeout=60)


def look_for_secrets(made: Cluster, machines: Sequence[Machine], verdicts: Verdicts) -> None:
    secrets = secrets_of(made)
    patterns = made.machines["client"].home.parent / "patterns"
    patterns.write_text("\n".join(secrets.values()) + "\n")
    refuse_a_password(made, verdicts)
    fetch(made, verdicts)
    for machine in machines:
        look_on(machine, patterns, secrets, verdicts)
    look_in_store(made, patterns, verdicts)
    look_in_state(made, patterns, verdicts)


def secrets_of(made: Cluster) -> dict[str, str]:
    token = (made.machines["head"].home / ".ray" / "auth_token").read_text()
    client = {f"the client's {name}": value.split(":")[-1].split("@")[0] for name, value in CLIENT_SECRETS.items()}
    nodes = {f"the nodes' {name}": value for name, value in NODE_SECRETS.items()}
    return {"the token": token, "the store's key": SECRET, "in an address": IN_STORAGE, **client, **nodes}


def refuse_a_password(made: Cluster, verdicts: Verdicts) -> None:
    spec = str(REPOSITORY / "jobs" / "quickstart.yaml")
    address = f"s3://someone:{IN_STORAGE}@tests/runs"
    done = made.machines["client"].run(*MNIST_RAY, "submit", spec, "--storage", address, changes=made.address)
    said = done.stdout + done.stderr
    (made.machines["client"].home / "refused.log").write_text(said)
    refused = done.returncode == 2 and IN_STORAGE not in said
    verdicts.say(
        refused, "client", "", "--storage s3://someone:PASSWORD@...", said if refused else "not refused, or shown"
    )


def fetch(made: Cluster, verdicts: Verdicts) -> None:
    """What the client has then: its output, and the whole run with the views that are made of it."""
    client = made.machines["client"]
    changes = {**made.address, **CLIENT_SECRETS}
    done = client.run(*MNIST_RAY, "fetch", NAME, "--to", "fetched", changes=changes, timeout_s=300)
    (client.home / "fetch.log").write_text(done.stdout + done.stderr)
    folder = client.home / "fetched"
    verdicts.say((folder / NAME / "report.html").is_file(), "client", "", "fetches the run", done.stdout + done.stderr)
    places = [folder, *client.home.glob("*.log")]
    report(verdicts, "client", "its output and the fetched run", found_in(places, secrets_of(made)))


def found_in(places: Sequence[Path], secrets: dict[str, str]) -> tuple[int, list[str]]:
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()]
    hits = []
    for file in files:
        content = file.read_bytes()
        hits += [f"{file.name}: {what}" for what, value in secrets.items() if value.encode() in content]
    return len(files), hits


def look_on(machine: Machine, patterns: Path, secrets: dict[str, str], verdicts: Verdicts) -> None:
    """All that lies in its /tmp and shared memory, its command lines and what `ray start` printed."""
    look = ["sh", "-c", f"grep -r -l -a -F -f {patterns} /tmp /dev/shm; find /tmp /dev/shm -type f | wc -l"]
    machine.run("sh", "-c", f"head -n 1 {patterns} > /tmp/planted")
    *planted, _ = machine.run(*look).stdout.split()
    verdicts.say("/tmp/planted" in planted, machine.name, "", "a planted secret", "is found")
    machine.run("rm", "/tmp/planted")
    *hits, count = machine.run(*look).stdout.split()
    hits = [f"{hit}: {', '.join(of(machine, hit, secrets))}" for hit in hits]
    report(verdicts, machine.name, "Ray's files, shared memory", (int(count), hits))
    commands = [
        f"{command[:60]}: {what}"
        for command in machine.commands()
        for what, value in secrets.items()
        if value in command
    ]
    report(verdicts, machine.name, "command lines", (len(machine.commands()), commands))
    report(verdicts, machine.name, "what ray start printed", found_in([machine.log], secrets))


def of(machine: Machine, file: str, secrets: dict[str, str]) -> list[str]:
    return [
        what for what, value in secrets.items() if machine.run("grep", "-q", "-a", "-F", value, file).returncode == 0
    ]


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
SAY = "print(json.dumps([len(files), [str(name) for name, content in files.items() if holds(content)]]))"


def look_in_store(made: Cluster, patterns: Path, verdicts: Verdicts) -> None:
    seen = looked(made, STORE, patterns, f"{made.storage}/{NAME}")
    report(verdicts, "store", "every object of the run", seen)


def look_in_state(made: Cluster, patterns: Path, verdicts: Verdicts) -> None:
    """The uploaded packages, unpacked, and what Ray keeps of jobs."""
    seen = looked(made, STATE, patterns, f"{made.machines['head'].address}:6379")
    report(verdicts, "head", "every key of the cluster's state, packages unpacked", seen)


def looked(made: Cluster, what: str, patterns: Path, where: str) -> tuple[int, list[str]]:
    script = [sys.executable, "-c", READ + what + SAY, str(patterns), where]
    done = made.machines["head"].run(*script, changes={"RAY_AUTH_MODE": "token"})
    count, hits = json.loads(done.stdout.splitlines()[-1]) if done.stdout else (0, [done.stderr[-500:]])
    return count, hits


def report(verdicts: Verdicts, place: str, what: str, seen: tuple[int, list[str]]) -> None:
    count, hits = seen
    verdicts.say(not hits and count > 0, place, "", f"secrets in {what}", "; ".join(hits) or f"none in {count}")
