"""`python -m mnist_ray.cli`: the command line without its script."""

import sys

from mnist_ray.cli.main import main

sys.exit(main())
