"""How far seeds and images move the difference of two configurations: python -m experiments.spread_of_images RUN

RUN is the folder of a finished run that retrained the selected configuration and the baseline on several seeds each.
Their answers on the test images are on record. Printed are the figures that a plan assumes (SPREAD_OF_LOSS and
SPREAD_OF_ACCURACY in mnist_ray/pipeline/plan.py): the standard deviation over seeds of a network's mean, and the one
over images of the difference of the seeds' means, residuals taken off.
"""

import argparse
from pathlib import Path

import numpy as np

from mnist_ray.record.judgement import predictions_of
from mnist_ray.record.rundir import RunDir
from mnist_ray.statistics import Values, between_configurations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    arguments = parser.parse_args()
    run = RunDir(arguments.run)
    selected, baseline = predictions_of(run, "selected"), predictions_of(run, "baseline")
    if min(len(selected), len(baseline)) < 2:
        parser.error(
            f"RUN {run} has {len(selected)} and {len(baseline)} tested models of the two sides: needs 2 of each"
        )
    sides = (selected, baseline)
    print(f"{len(selected)} and {len(baseline)} models, {len(selected[0].labels):,} images:")
    print(line("accuracy, points", 100.0, [np.stack([each.is_right for each in side]).astype(float) for side in sides]))
    print(line("loss", 1.0, [np.stack([each.losses for each in side]) for side in sides]))


def line(name: str, unit: float, sides: list[Values]) -> str:
    """Return the difference with its interval and its parts. sides: (models, images) each."""
    first, second = sides
    seeds = [float(side.mean(axis=1).std(ddof=1)) for side in sides]
    found = between_configurations(first, second)
    per_image = first.mean(axis=0) - second.mean(axis=0)
    residuals = [side - side.mean(axis=1, keepdims=True) - side.mean(axis=0) + side.mean() for side in sides]
    residual = sum(float((each**2).sum()) / (len(each) - 1) / each.shape[1] / len(each) for each in residuals)
    images = max(float(per_image.var(ddof=1)) - residual, 0.0) ** 0.5
    return (
        f"  {name}: {unit * found.value:+.4f} ({unit * found.interval.low:+.4f} to {unit * found.interval.high:+.4f}), "
        f"over seeds {unit * seeds[0]:.4f} and {unit * seeds[1]:.4f}, over images {unit * images:.4f}, residuals "
        f"{unit * residual**0.5:.4f}"
    )


if __name__ == "__main__":
    main()
