"""Does the fast step cost accuracy? python -m experiments.accuracy

For each seed the network is trained twice on MNIST, from the same weights: by mnist_ray, and by a loop of torch's own
layers, dropout and Adam. Both are scored on images held back from training (the
test split is not read). The last lines are the mean differences over seeds with their 95 % paired t intervals.
"""

import argparse
import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from mnist_ray import data
from mnist_ray.config import Precision, TrainingConfig
from mnist_ray.metrics import Score
from mnist_ray.training.evaluation import evaluate
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.model import MnistCNN
from mnist_ray.training.process import prepare_to_train

NUM_HELD_BACK = 10_000


@dataclass(frozen=True)
class Pair:
    seed: int
    ours: Score
    torchs: Score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=data.default_data_dir(), help="where MNIST lies or goes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="each computes on one thread")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of mnist_ray's step")
    arguments = parser.parse_args()
    data.fetch("mnist", arguments.data_dir)
    compare = partial(train_both, arguments.data_dir, arguments.epochs, arguments.precision)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        pairs = []
        for pair in pool.imap(compare, range(1, arguments.seeds + 1)):
            print(
                f"seed {pair.seed}: mnist_ray {pair.ours.accuracy:.2%} {pair.ours.loss:.4f}, "
                f"torch {pair.torchs.accuracy:.2%} {pair.torchs.loss:.4f}",
                flush=True,
            )
            pairs.append(pair)
    print(f"after {arguments.epochs} epochs, scored on {NUM_HELD_BACK:,} images held back, mnist_ray less torch:")
    say("accuracy, percentage points", [100 * (pair.ours.accuracy - pair.torchs.accuracy) for pair in pairs])
    say("loss, nats", [pair.ours.loss - pair.torchs.loss for pair in pairs])


def train_both(folder: Path, num_epochs: int, precision: Precision, seed: int) -> Pair:
    prepare_to_train(1)
    examples = data.load_training("mnist", folder)
    split = data.stratified_split(examples.labels, NUM_HELD_BACK, seed=0)
    learnt, held_back = examples.take(split.train), examples.take(split.validation)
    train, scored = (Examples.of(part, torch.device("cpu")) for part in (learnt, held_back))
    pixels = data.pixel_statistics(learnt.images)
    config = TrainingConfig(num_epochs=num_epochs, seed=seed, precision=precision)
    state = TrainState.initial(config, pixels)
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for _ in fit(state, TrainingData(train, None, pixels), config):
        pass
    return Pair(seed, evaluate(state.model, scored), evaluate(trained_by_torch(weights, train, config), scored))


def trained_by_torch(weights: dict[str, torch.Tensor], train: Examples, config: TrainingConfig) -> MnistCNN:
    model = MnistCNN(dropout=0.0)
    model.load_state_dict(weights)
    blocks = [[*list(block.children())[:-1], nn.Dropout(config.dropout)] for block in model.blocks]
    network = nn.Sequential(*(layer for block in blocks for layer in block), nn.Flatten(), model.head).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    torch.manual_seed(config.seed)
    for _ in range(config.num_epochs):
        for batch in torch.randperm(len(train)).split(config.batch_size):
            images = (train.images[batch].float() - model.image_mean) / model.image_std
            optimizer.zero_grad()
            functional.cross_entropy(network(images), train.labels[batch]).backward()
            optimizer.step()
    return model


def say(name: str, differences: list[float]) -> None:
    mean = sum(differences) / len(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=stats.sem(differences))
    print(f"  {name}: {mean:+.4f} (95 % {low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
