"""However many workers share the work, each example is trained on once an epoch and scored once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mnist_ray.config import TrainingConfig
from mnist_ray.training.distributed import Worker
from mnist_ray.training.evaluation import evaluate
from mnist_ray.training.examples import Examples
from mnist_ray.training.kernels.flat_adam import FlatAdam
from mnist_ray.training.loop import Steps, train_one_epoch

counts = st.integers(0, 300)
world_sizes = st.integers(1, 12)


def workers(world_size: int) -> list[Worker]:
    return [Worker(rank, world_size) for rank in range(world_size)]


class Witness(nn.Module):
    """Notes which of `numbered` examples it is shown, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10))
        self.seen: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Right about the even examples alone, whose label is 0."""
        numbers = images.flatten(1)[:, :2].long() @ torch.tensor([256, 1])
        self.seen.append(numbers.tolist())
        return nn.functional.one_hot(numbers % 2, 10) + self.weight


def numbered(num_examples: int) -> Examples:
    """Example i has i in its first two pixels; all labels are 0."""
    images = torch.zeros(num_examples, 1, 28, 28, dtype=torch.uint8)
    numbers = torch.arange(num_examples)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers // 256, numbers % 256
    return Examples(images, torch.zeros(num_examples, dtype=torch.int64))


@given(batch_size=counts, world_size=world_sizes)
def test_shares_partition_a_batch_as_evenly_as_it_goes(batch_size: int, world_size: int) -> None:
    batch = torch.arange(batch_size)
    shares = [worker.share_of(batch) for worker in workers(world_size)]
    assert torch.cat(shares).equal(batch)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=50)
@given(num_examples=st.integers(1, 1300), world_size=world_sizes)
def test_every_example_is_scored_once(num_examples: int, world_size: int) -> None:
    examples = numbered(num_examples)
    witness = Witness()
    scores = []
    for worker in workers(min(world_size, num_examples)):  # a rank without examples: test_workers.py
        witness.seen.append([])
        scores.append(evaluate(witness, examples, worker))
    assert sorted(number for batch in witness.seen for number in batch) == list(range(num_examples))
    assert sum(score.num_examples for score in scores) == num_examples
    assert sum(score.num_correct for score in scores) == (num_examples + 1) // 2
    sizes = [score.num_examples for score in scores]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=50)
@given(
    world_size=st.integers(1, 5),
    more_examples=st.integers(0, 90),
    more_per_batch=st.integers(0, 20),
    epoch=st.integers(1, 3),
)
def test_every_example_is_trained_on_once_an_epoch_in_the_same_global_batches(
    world_size: int, more_examples: int, more_per_batch: int, epoch: int
) -> None:
    """At least one example a worker in all but the last batch: a spec with smaller ones is refused."""
    num_examples, batch_size = world_size + more_examples, world_size + more_per_batch
    config = TrainingConfig(num_epochs=3, batch_size=batch_size)
    examples = numbered(num_examples)

    def global_batches(world_size: int) -> list[list[int]]:
        by_rank = []
        for worker in workers(world_size):
            witness = Witness()
            steps = Steps(witness, FlatAdam(witness.parameters(), 0.001), examples, worker)
            train_one_epoch(steps, num_examples, config, epoch, worker)
            by_rank.append(witness.seen)
        return [[number for share in shares for number in share] for shares in zip(*by_rank, strict=True)]

    together = global_batches(world_size)
    assert together == global_batches(1)
    assert sorted(number for batch in together for number in batch) == list(range(num_examples))
    assert all(len(batch) == batch_size for batch in together[:-1])
