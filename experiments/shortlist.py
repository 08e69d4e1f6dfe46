"""Does TPE lose anything when it is shown only a part of a long search? python -m experiments.shortlist

A made-up objective over the usual space (a bowl in the logarithm of the learning rate and in dropout, with noise) is
searched twice from each seed: once with every trial shown to TPE, once with the latest L and the best 25. L is smaller
than in mnist_ray (see record/shortlist.py), so that much is left out in few trials. What is compared is the noiseless
loss of the configuration that each would choose.
"""

import argparse
import math
from typing import Any

import numpy as np
from scipy import stats

from mnist_ray.config import JobSpec, parse_spec
from mnist_ray.record import shortlist
from mnist_ray.record.rundir import Training
from mnist_ray.record.study import SearchStudy

NOISE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--latest", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=30)
    arguments = parser.parse_args()
    pairs = []
    for seed in range(arguments.seeds):
        spec = parse_spec({"data": {"name": "digits"}, "seed": seed, "search": {"num_trials": arguments.trials}})
        pairs.append([chosen_loss(spec, latest) for latest in (arguments.trials + 1, arguments.latest)])
    whole, part = np.transpose(pairs)
    differences = part - whole
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=differences.mean(), scale=stats.sem(differences))
    print(
        f"{arguments.trials} trials, {arguments.seeds} seeds, noiseless loss of the choice (noise {NOISE}): all "
        f"shown {whole.mean():.5f}, the latest {arguments.latest} and the best 25 {part.mean():.5f}; difference "
        f"{differences.mean():+.5f} (95 % {low:+.5f} to {high:+.5f})"
    )


def loss_of(config: dict[str, Any]) -> float:
    away = 0.1 * math.log(config["learning_rate"] / 0.002) ** 2 + (config["dropout"] - 0.3) ** 2
    return float(away + 0.02 * abs(math.log2(config["batch_size"] / 64)))


def chosen_loss(spec: JobSpec, latest: int) -> float:
    shortlist.NUM_LATEST = latest
    study, noise = SearchStudy(spec, []), np.random.default_rng(spec.seed)
    best, best_config = math.inf, {}
    for number in range(spec.search.num_trials):
        config = {**spec.recipe.model_dump(), **study.suggest()}
        loss = loss_of(config) + NOISE * float(noise.standard_normal())
        row = {"epoch": spec.search.num_epochs, "val_loss": loss}
        ended = {"status": "complete", "reason": None}
        study.tell(Training(f"trial-{number:04d}", "search", config, {"number": number}, [row], ended))
        if loss < best:
            best, best_config = loss, config
    return loss_of(best_config)


if __name__ == "__main__":
    main()
