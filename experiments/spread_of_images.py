"""How far images move the difference of two configurations: python -m experiments.spread_of_images

The recipe and another configuration are trained on MNIST, each on some seeds, and scored on images held back from
training (the test split is not read). Printed are the figures that a plan assumes: the standard deviation over seeds of
a network's mean, and the one over images of the difference of the seeds' means, residuals taken off.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax

from mnist_ray import data
from mnist_ray.config import Hyperparameters, TrainingConfig
from mnist_ray.statistics import Values, between_configurations
from mnist_ray.training.evaluation import logits_of
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.process import prepare_to_train

NUM_HELD_BACK = 10_000
SIDES = (Hyperparameters(), Hyperparameters(learning_rate=0.002, dropout=0.15))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=data.default_data_dir(), help="where MNIST lies or goes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    data.fetch("mnist", arguments.data_dir)
    prepare_to_train(1)
    examples = data.load_training("mnist", arguments.data_dir)
    split = data.stratified_split(examples.labels, NUM_HELD_BACK, seed=0)
    learnt, held_back = examples.take(split.train), examples.take(split.validation)
    pixels = data.pixel_statistics(learnt.images)
    train = TrainingData(Examples.of(learnt, torch.device("cpu")), None, pixels)
    losses, rights = [], []
    for side in SIDES:
        logits = []
        for seed in range(1, arguments.seeds + 1):
            config = TrainingConfig(**side.model_dump(), num_epochs=arguments.epochs, seed=seed)
            state = TrainState.initial(config, pixels)
            for _ in fit(state, train, config):
                pass
            logits.append(logits_of(state.model, held_back))
        all_logits = np.stack(logits).astype(np.float64)
        of_labels = log_softmax(all_logits, axis=2)[:, np.arange(NUM_HELD_BACK), held_back.labels]
        losses.append(-of_labels)
        rights.append((all_logits.argmax(axis=2) == held_back.labels).astype(np.float64))
    print(f"after {arguments.epochs} epochs, {arguments.seeds} seeds a side:")
    say("accuracy", 100.0, rights)
    say("loss", 1.0, losses)


def say(name: str, unit: float, sides: list[Values]) -> None:
    first, second = sides
    seeds = [float(side.mean(axis=1).std(ddof=1)) for side in sides]
    found = between_configurations(first, second)
    per_image = first.mean(axis=0) - second.mean(axis=0)
    residuals = [side - side.mean(axis=1, keepdims=True) - side.mean(axis=0) + side.mean() for side in sides]
    residual = sum(float((each**2).sum()) / (len(each) - 1) / NUM_HELD_BACK / len(each) for each in residuals)
    images = max(float(per_image.var(ddof=1)) - residual, 0.0) ** 0.5
    print(
        f"  {name}: {unit * found.value:+.4f} ({unit * found.interval.low:+.4f} to {unit * found.interval.high:+.4f}), "
        f"over seeds {unit * seeds[0]:.4f} and {unit * seeds[1]:.4f}, over images {unit * images:.4f}, residuals "
        f"{unit * residual**0.5:.4f}"
    )


if __name__ == "__main__":
    main()
