"""The entry point that `ray job submit` runs: `python jobs/run.py jobs/mnist.yaml`, options as `mnist-ray run`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the uploaded copy of this repository

from mnist_ray.cli.main import main

if __name__ == "__main__":
    # A job's working directory is a copy that goes away, so a relative storage lies below the home folder.
    sys.exit(main(["run", *sys.argv[1:]], storage_root=Path.home() / "mnist_ray"))
