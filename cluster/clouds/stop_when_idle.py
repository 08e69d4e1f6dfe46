"""End a cluster of Ray's launcher, the head last, when no job has run on it for a while. Runs on the head.

`ray down` does the same from elsewhere; on the head it would stop its own container before it has ended a machine.
Ray has no public call that ends machines, so the script uses the launcher's own provider.
"""

import argparse
import json
import os
import shlex
import subprocess
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "token"  # before ray is imported, which reads it once

from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND
from ray.job_submission import JobStatus, JobSubmissionClient


def is_busy(address: str) -> bool:
    """Report whether a submitted job, or a driver that joined, has yet to end. A head that does not answer is idle."""
    try:
        jobs = JobSubmissionClient(address).list_jobs()
    except Exception as error:  # of many kinds: no connection, no answer in time, a wrong answer
        print(f"the job server does not answer: {error}", flush=True)
        return False
    return any(job.status in (JobStatus.PENDING, JobStatus.RUNNING) for job in jobs)


def end_cluster(launcher_file: Path) -> None:
    """End all workers, then the head."""
    launcher = json.loads(launcher_file.read_text())
    provider = _get_node_provider(launcher["provider"], launcher["cluster_name"])
    for kind in (NODE_KIND_WORKER, NODE_KIND_HEAD):
        provider.terminate_nodes(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: kind}))


def main() -> None:
    """Look for jobs until none has run for --minutes, then end the cluster."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="how long without a job is too long")
    parser.add_argument("--every-s", type=float, default=30, help="how often to look")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="of the job server")
    parser.add_argument("--launcher-file", type=Path, default=Path("~/ray_bootstrap_config.yaml").expanduser())
    parser.add_argument("--instead", help="a command to run instead of ending the cluster")
    options = parser.parse_args()

    last_busy = time.monotonic()
    while time.monotonic() - last_busy < options.minutes * 60:
        time.sleep(options.every_s)
        if is_busy(options.address):
            last_busy = time.monotonic()
    print(f"no job for {options.minutes:g} minutes: the cluster ends", flush=True)
    if options.instead:
        subprocess.run(shlex.split(options.instead), check=True)
    else:
        end_cluster(options.launcher_file)


if __name__ == "__main__":
    main()
