"""A cluster of a head, two workers, two spares, a store and a client, started as in docs/clusters/machines.md."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.ray_head import BIN, REPOSITORY
from tests.s3_server import ACCESS, IDENTITY, MAKE, SECRET
from tools.cluster_network.machines import Machine, network, wait_for

SCRIPTS = REPOSITORY / "cluster" / "machines"
NAMES = ("head", "worker1", "worker2", "spare1", "spare2", "store", "client")
NODE_SECRETS = {"WANDB_API_KEY": "canary-nodes-wandb-91c4", "HF_TOKEN": "canary-nodes-hf-91c4"}
COUNT = "import ray; ray.init(address='auto', logging_level=40); print(sum(n['Alive'] for n in ray.nodes()))"
ENDED = """
import json, sys
from mnist_ray import RunDir
from mnist_ray.storage.files import storage_path
trials = RunDir(storage_path(sys.argv[1])).state.trainings("search")
print(json.dumps({trial.id: trial.ended.at for trial in trials if trial.ended}))
"""


@dataclass
class Cluster:
    """The machines of a cluster and the steps that start it."""

    machines: dict[str, Machine]
    data_dir: Path

    storage = "s3://tests/runs"
    client_environment = {"RAY_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "token"}  # noqa: RUF012

    @property
    def store_environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://{self.machines['store'].address}:8333",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start_store(self) -> None:
        """Start an S3 store and make a bucket."""
        store = self.machines["store"]
        (store.home / "identity.json").write_text(json.dumps(IDENTITY))
        store.start(
            BIN / "weed", "server", f"-dir={store.home}", f"-ip={store.address}", "-volume.max=20", "-filer", "-s3",
            "-master.telemetry=false", f"-s3.config={store.home / 'identity.json'}", "-s3.autoCreateBucket=false",
        )  # fmt: skip
        ready = [sys.executable, "-c", MAKE, "s3://tests"]
        wait_for("the store", lambda: store.run(*ready, changes=self.store_environment).returncode == 0, 60)

    def start_head(self) -> None:
        """Start a head without work, and copy its token to the client."""
        head = self.machines["head"]
        head.environment = {**self.store_environment, **NODE_SECRETS, "MNIST_RAY_DATA": str(self.data_dir)}
        head.start(
            SCRIPTS / "head.sh", "--block", "--num-cpus=0", "--num-gpus=0", f"--node-ip-address={head.address}",
            "--object-store-memory=300000000",
        )  # fmt: skip
        wait_for("the head's token", (head.home / ".ray" / "auth_token").exists, 30)
        self._copy_token("client")

    def join(self, name: str) -> None:
        """Let a machine join the cluster."""
        machine = self.machines[name]
        machine.environment = {**self.store_environment, **NODE_SECRETS, "MNIST_RAY_DATA": str(self.data_dir)}
        self._copy_token(name)
        machine.start(
            SCRIPTS / "join.sh", self.machines["head"].address, "--block", "--num-cpus=1", "--num-gpus=0",
            f"--node-ip-address={machine.address}", "--object-store-memory=300000000",
        )  # fmt: skip

    def _copy_token(self, name: str) -> None:
        """Copy the head's token to a machine, as a person does with scp."""
        token = self.machines[name].home / ".ray" / "auth_token"
        token.parent.mkdir(exist_ok=True)
        shutil.copyfile(self.machines["head"].home / ".ray" / "auth_token", token)
        token.chmod(0o600)

    def wait_for_nodes(self, count: int) -> None:
        """Return once so many nodes are alive. Raises RuntimeError."""
        head = self.machines["head"]
        script = COUNT.replace("'auto'", repr(f"{head.address}:6379"))

        def are_there() -> bool:
            done = head.run(sys.executable, "-c", script, changes={"RAY_AUTH_MODE": "token"})
            return done.stdout.strip() == str(count)

        wait_for(f"{count} nodes", are_there, 120)

    def open_tunnel(self) -> None:
        """Run `ssh -N -L 8265:127.0.0.1:8265 HEAD` on the client, with a real server on the head."""
        head, client = self.machines["head"], self.machines["client"]
        host_key, key = head.home / "host_key", client.home / "key"
        for path in (host_key, key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        sshd = (
            f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -o HostKey={host_key} "
            f"-o AuthorizedKeysFile={key}.pub -o StrictModes=no -o PidFile=none -o UsePAM=no"
        )
        head.start("sh", "-c", sshd)
        self._tunnel = client.open(
            "ssh", "-N", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "ConnectionAttempts=20", "-L", "8265:127.0.0.1:8265", f"root@{head.address}",
            output=client.home / "ssh.log",
        )  # fmt: skip
        wait_for(
            "the tunnel",
            lambda: client.run(BIN / "ray", "job", "list", changes=self.client_environment).returncode == 0,
            60,
        )

    def close_tunnel(self) -> None:
        self._tunnel.kill()
        self._tunnel.wait(timeout=30)

    def ended_trials(self, name: str) -> dict[str, str]:
        """Return when each trial ended, by its id, as the record in the store says now."""
        script = [sys.executable, "-c", ENDED, f"{self.storage}/{name}"]
        done = self.machines["head"].run(*script)
        ended: dict[str, str] = json.loads(done.stdout)
        return ended


@contextlib.contextmanager
def started_cluster(folder: Path, data_dir: Path) -> Iterator[Cluster]:
    """Start a cluster with its tunnel; end all of its machines after the block."""
    with network(folder, NAMES) as machines:
        cluster = Cluster(machines, data_dir)
        cluster.start_store()
        cluster.start_head()
        cluster.wait_for_nodes(1)
        for name in ("worker1", "worker2"):
            cluster.join(name)
        cluster.wait_for_nodes(3)
        cluster.open_tunnel()
        try:
            yield cluster
        finally:
            cluster.close_tunnel()
