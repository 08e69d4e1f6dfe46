"""A job on a cluster without workers, whose autoscaler (Ray's own, with its fake cloud) may start two.

python -m tools.cluster_network.autoscaling        as root
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.ray_head import REPOSITORY
from tools.cluster_network.machines import Machine, network, wait_for

NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # Ray's fake cloud expects this id of its head
LAUNCHER = {
    "cluster_name": "scaled",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 100,
    "provider": {
        "type": "external",  # under its own name it needs a file that the wheel lacks
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": NODE_ID,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    **{f"{of}setup_commands": [] for of in ("", "head_", "worker_")},
    **{f"{of}start_ray_commands": [] for of in ("head_", "worker_")},
    "initialization_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "auth": {},
}
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": NODE_ID,
}
SHORT = (
    "autoscaling.cpus=2",
    "search.num_trials=4",
    "search.num_epochs=2",
    "final=null",
    "retrain.num_epochs=3",
    "retrain.workers=2",
)


def main() -> int:
    """Plan and run the job; return the larger exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="mnist-ray-scaled-", dir="/var/tmp") as folder,
        network(Path(folder), ["head"]) as machines,
    ):
        head = machines["head"]
        start(head)
        address = f"{head.address}:6379"
        settings = [word for setting in SHORT for word in ("--set", setting)]
        spec = REPOSITORY / "jobs" / "quickstart.yaml"
        job: list[str | Path] = [spec, "--address", address, "--storage", head.home / "results", *settings]
        codes = []
        for command in ("plan", "run"):
            words: list[str | Path] = [sys.executable, "-m", "mnist_ray.cli", command, *job]
            done = head.run(*words, timeout_s=500, changes={"RAY_AUTH_MODE": "token"})
            print(done.stdout + done.stderr, flush=True)
            codes.append(done.returncode)
        if max(codes):
            print(head.log.read_text()[-3000:])
    return max(codes)


def start(head: Machine) -> None:
    """Start a head with an autoscaler."""
    launcher = head.home / "launcher.json"
    launcher.write_text(json.dumps(LAUNCHER))
    head.environment = dict(ENVIRONMENT)
    head.start(
        REPOSITORY / "cluster" / "machines" / "head.sh", "--block", "--num-cpus=0", "--num-gpus=0",
        f"--node-ip-address={head.address}", f"--autoscaling-config={launcher}",
    )  # fmt: skip
    health = ["ray", "health-check", "--address", f"{head.address}:6379"]
    wait_for("the head", lambda: head.run(*health, changes={"RAY_AUTH_MODE": "token"}).returncode == 0, 90)


if __name__ == "__main__":
    sys.exit(main())
