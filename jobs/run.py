"""The entry point that `ray job submit` runs: `python jobs/run.py jobs/mnist.yaml`, options as `mnist-ray run`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the uploaded copy of this repository

from mnist_ray.cli import main

if __name__ == "__main__":
    # A job's working directory is a copy that goes away, so results need an absolute place.
    storage = os.environ.get("MNIST_RAY_STORAGE") or str(Path.home() / "mnist_ray_results")
    sys.exit(main(["run", "--storage", storage, *sys.argv[1:]]))
