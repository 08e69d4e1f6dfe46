"""The price of showing TPE only a part of a long search: python -m experiments.shortlist

A made-up objective over the usual space (a bowl in the logarithm of the learning rate and in dropout, with noise) is
searched twice from each seed: once with every trial shown to TPE, once with the latest L and the best 25. L is smaller
than in mnist_ray (see record/shortlist.py), so that much is left out in few trials. Compared is the noiseless loss
of the configuration that each would select.
"""

import argparse
import math

import numpy as np
from scipy import stats

from mnist_ray.config import Hyperparameters, JobSpec, parse_spec
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record import shortlist
from mnist_ray.record.events import TrainingCreated, TrainingEnded
from mnist_ray.record.state import Training
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
        pairs.append([selected_loss(spec, latest) for latest in (arguments.trials + 1, arguments.latest)])
    whole, part = np.transpose(pairs)
    differences = part - whole
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=differences.mean(), scale=stats.sem(differences))
    print(
        f"{arguments.trials} trials, {arguments.seeds} seeds, noise {NOISE}; noiseless loss of what is selected: "
        f"all shown {whole.mean():.5f}, the latest {arguments.latest} and the best 25 {part.mean():.5f}; difference "
        f"{differences.mean():+.5f} (95 % {low:+.5f} to {high:+.5f})"
    )


def loss_of(values: Hyperparameters) -> float:
    away = 0.1 * math.log(values.learning_rate / 0.002) ** 2 + (values.dropout - 0.3) ** 2
    return float(away + 0.02 * abs(math.log2(values.batch_size / 64)))


def selected_loss(spec: JobSpec, latest: int) -> float:
    shortlist.NUM_LATEST = latest
    study, noise = SearchStudy(spec, []), np.random.default_rng(spec.seed)
    best, best_values = math.inf, spec.baseline
    for number in range(spec.search.num_trials):
        values = study.suggest()
        loss = loss_of(values) + NOISE * float(noise.standard_normal())
        study.tell(ended_trial(spec, number, values, loss))
        if loss < best:
            best, best_values = loss, values
    return loss_of(best_values)


def ended_trial(spec: JobSpec, number: int, values: Hyperparameters, loss: float) -> Training:
    """Return a complete trial whose last epoch had this validation loss."""
    config = spec.training_config(values, spec.search.num_epochs, seed=0)
    created = TrainingCreated(id=f"trial-{number:04d}", stage="search", config=config, number=number)
    score = Score(loss, 0, 1)
    return Training(
        created.id,
        "search",
        config,
        created.at,
        number,
        history=[EpochMetrics(spec.search.num_epochs, 1.0, score, score)],
        reported_at=[created.at],
        ended=TrainingEnded(id=created.id, status="complete"),
    )


if __name__ == "__main__":
    main()
