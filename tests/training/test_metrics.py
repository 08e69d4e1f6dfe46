"""Losses and counts are sums over examples, divided once. Across processes: test_workers.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from mnist_ray.metrics import Score
from mnist_ray.training.metrics import ScoreSums, summed_loss

CPU = torch.device("cpu")


@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any))
def test_the_score_of_the_whole_is_merged_from_any_parts(seed: int, sizes: list[int]) -> None:
    """A mean of batch means would weigh the examples of a small batch more."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(sum(sizes), 10, dtype=torch.float64, generator=generator)
    labels = torch.randint(10, (sum(sizes),), generator=generator)
    sums = ScoreSums(CPU)
    for part, truth in zip(logits.split(sizes), labels.split(sizes), strict=True):
        sums.add(summed_loss(part, truth), part, truth)
    merged = sums.merged()
    assert merged.num_examples == sum(sizes)
    assert merged.num_correct == int((logits.argmax(dim=1) == labels).sum())
    assert merged.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-12)
    assert merged.accuracy == merged.num_correct / sum(sizes)


def test_the_loss_is_in_nats_per_example() -> None:
    sums = ScoreSums(CPU)
    logits, labels = torch.zeros(4, 10), torch.tensor([0, 1, 2, 3])
    sums.add(summed_loss(logits, labels), logits, labels)
    score = sums.merged()
    assert score.loss == pytest.approx(2.302585092994046, rel=1e-6)
    assert score == Score(score.loss, num_correct=1, num_examples=4)


def test_an_empty_share_adds_nothing() -> None:
    loss = summed_loss(torch.zeros(0, 10, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_many_small_losses_keep_their_digits() -> None:
    """In float32 the sum of 10,000 such losses is off in its fifth digit."""
    sums = ScoreSums(CPU)
    logits, labels = torch.zeros(1000, 10), torch.zeros(1000, dtype=torch.int64)
    for _ in range(10_000):
        sums.add(torch.tensor(0.1), logits[:1], labels[:1])
    assert sums.merged().loss == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)
    assert sums.merged().num_correct == 10_000


def test_scores_carry_no_gradients() -> None:
    """Or the memory of every step of an epoch would be kept until its end."""
    sums = ScoreSums(CPU)
    logits = torch.zeros(4, 10, requires_grad=True)
    labels = torch.zeros(4, dtype=torch.int64)
    sums.add(summed_loss(logits, labels), logits, labels)
    assert not sums._sums.requires_grad
