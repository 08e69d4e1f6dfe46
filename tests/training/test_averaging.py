"""The average of the weights has the width that was asked for, and moves as its formula says."""

import math

import pytest
import torch

from mnist_ray.config import TrainingConfig
from mnist_ray.training.averaging import WeightAverage, exponent_of
from mnist_ray.training.evaluation import evaluate
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.model import MnistCNN


@pytest.mark.parametrize("width", [1e-4, 0.05, 0.1, 0.2, 0.28])
def test_the_exponent_gives_the_width(width: float) -> None:
    gamma = exponent_of(width)
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(width, rel=1e-11)


def test_published_widths_have_published_exponents() -> None:
    """Karras et al. 2024, section 3.1: 0.05 and 0.10 have gamma 16.97 and 6.94."""
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.005)


def test_the_weights_of_steps_have_the_width() -> None:
    """Each step's share in the end, as a distribution over steps, has the standard deviation width * steps."""
    speed, num_steps = exponent_of(0.1) + 1, 20_000
    shares = torch.zeros(num_steps, dtype=torch.float64)
    for step in range(1, num_steps + 1):
        share = min(1.0, speed / step)
        shares *= 1 - share
        shares[step - 1] = share
    steps = torch.arange(1, num_steps + 1, dtype=torch.float64)
    mean = (shares * steps).sum()
    assert float(((shares * (steps - mean) ** 2).sum()).sqrt()) / num_steps == pytest.approx(0.1, rel=1e-3)


def test_it_moves_by_the_formula() -> None:
    model = MnistCNN(0.0).double()
    average = WeightAverage(model, 0.25)
    expected = model.head.weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(step)
        expected += min(1.0, (exponent_of(0.25) + 1) / step) * (model.head.weight.detach() - expected)
        average.advance(step)
        average.move()
    torch.testing.assert_close(average.model.head.weight, expected, rtol=1e-12, atol=1e-12, check_device=False)
    counts = [model.state_dict()["blocks.0.1.num_batches_tracked"] for model in (model, average.model)]
    assert counts[0].equal(counts[1]) and int(counts[0]) == 15
    assert not average.model.state_dict()["blocks.1.1.running_var"].equal(model.state_dict()["blocks.1.1.running_var"])


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_the_average_is_what_counts(few_digits: TrainingData, kernels: str) -> None:
    """It ships and is validated; the last weights are as without it, and their score stands beside its own."""
    config = TrainingConfig(num_epochs=3, batch_size=32).model_copy(update={"kernels": kernels})
    plainly = TrainState.initial(config, few_digits.statistics)
    without = list(fit(plainly, few_digits, config))
    averaging = config.model_copy(update={"ema": 0.1})
    state = TrainState.initial(averaging, few_digits.statistics)
    reports = list(fit(state, few_digits, averaging))
    assert all(tensor.equal(plainly.model.state_dict()[name]) for name, tensor in state.model.state_dict().items())
    assert [report.raw_validation for report in reports] == [report.validation for report in without]
    assert few_digits.validation is not None
    assert reports[-1].validation == evaluate(state.shipped_model, few_digits.validation)
    assert reports[-1].validation != reports[-1].raw_validation
    assert (
        reports[-1].objective("val_loss") == reports[-1].columns()["val_loss"] != reports[-1].columns()["val_raw_loss"]
    )
    assert state.shipped_model is not state.model
    assert plainly.shipped_model is plainly.model
    for name in ("image_mean", "image_std", "blocks.0.1.num_batches_tracked"):
        assert state.shipped_model.state_dict()[name].equal(state.model.state_dict()[name])
