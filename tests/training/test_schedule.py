"""The learning rate follows its formula over a training's own steps, and torch's where torch has the schedule."""

import pytest
import torch

from mnist_ray.config import Schedule, TrainingConfig
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.loop import Steps, TrainState
from mnist_ray.training.optimizer import TorchAdam
from mnist_ray.training.schedule import rate_factor


def factors(schedule: Schedule, warmup: float, num_steps: int) -> list[float]:
    return [rate_factor(schedule, warmup, step, num_steps) for step in range(1, num_steps + 1)]


def test_constant_ignores_the_warmup() -> None:
    assert factors("constant", 0.5, 10) == [1.0] * 10


def test_cosine_rises_then_falls() -> None:
    assert factors("cosine", 0.2, 10) == pytest.approx(
        [0.5, 1.0, 1.0, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]
    )


def test_cosine_without_warmup_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for _ in range(40):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert factors("cosine", 0.0, 40) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.01, 0.05, 0.3, 0.77])
def test_one_cycle_is_torchs(warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=90, pct_start=warmup, cycle_momentum=False
    )
    expected = []
    for step in range(90):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        if step < 89:
            reference.step()
    assert factors("one_cycle", warmup, 90) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_every_factor_is_a_share(schedule: Schedule, warmup: float, num_steps: int) -> None:
    assert all(0 < factor <= 1 for factor in factors(schedule, warmup, num_steps))


def test_steps_beyond_the_last_keep_its_rate() -> None:
    assert rate_factor("cosine", 0.1, 99, 10) == rate_factor("cosine", 0.1, 10, 10)


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_the_schedule_spans_the_training(few_digits: TrainingData, kernels: str) -> None:
    """101 digits in batches of 32 for two epochs: eight steps."""
    config = TrainingConfig(num_epochs=2, batch_size=32, schedule="cosine", warmup=0.25, learning_rate=0.01)
    config = config.model_copy(update={"kernels": kernels})
    state = TrainState.initial(config, few_digits.statistics)
    steps = Steps.of(state, few_digits.train, config, Worker())
    steps.begin_epoch()
    rates = []
    for batch in torch.arange(101).repeat(2).split(32):
        steps.take(batch, len(batch))
        optimizer = state.optimizer
        if isinstance(optimizer, TorchAdam):
            rates.append(optimizer._adam.param_groups[0]["lr"])
        else:
            rates.append(float(optimizer._step_size) * (1 - 0.9**optimizer.num_steps))  # type: ignore[attr-defined]
    expected = [0.01 * factor for factor in factors("cosine", 0.25, 8)][: len(rates)]
    assert rates[:7] == pytest.approx(expected[:7], rel=1e-5)
