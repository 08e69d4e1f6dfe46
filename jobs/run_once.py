"""`mnist-ray run` for a scheduler that starts failed jobs again, such as KubeRay: no second try where none can help.

    python jobs/run_once.py jobs/mnist.yaml --name mnist --storage /results        as the entry point of a Ray job

A job with a fault in its command, spec or data ends as stopped, not as failed: KubeRay makes a new cluster for a
failed one.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mnist_ray.cli.main import main as mnist_ray
from mnist_ray.errors import DataError, SpecError

POINTLESS = (SpecError.exit_code, DataError.exit_code)


def main() -> int:
    """Run the job and return its exit code. A job that another try cannot help is stopped by Ray, within a minute."""
    try:
        code = mnist_ray(["run", *sys.argv[1:]], storage_root=Path.home() / "mnist_ray")
    except SystemExit as error:  # argparse's, for a command with a mistake
        code = int(error.code or 0)
    if code in POINTLESS:
        from ray.job_submission import JobSubmissionClient

        config = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        print(f"exit code {code}: another try would fail too, so this job is stopped", flush=True)
        JobSubmissionClient().stop_job(config["metadata"]["job_submission_id"])
        time.sleep(60)
    return code


if __name__ == "__main__":
    sys.exit(main())
