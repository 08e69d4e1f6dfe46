"""Our Adam is torch's, on parameters that lie in one vector."""

import pytest
import torch
from torch import nn

from mnist_ray.training.kernels.flat_adam import FlatAdam
from mnist_ray.training.model import MnistCNN


def a_model(layout: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    return MnistCNN(dropout=0.0).double().to(memory_format=layout)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_takes_torchs_steps(layout: torch.memory_format, weight_decay: float) -> None:
    """At a rate that changes; without weight decay torch's AdamW is its Adam."""
    ours, reference = a_model(layout), a_model(layout)
    adam = FlatAdam(ours.parameters(), 0.01, weight_decay)
    torchs = torch.optim.AdamW(reference.parameters(), weight_decay=weight_decay)
    for step in range(20):
        adam.zero_grad()
        for one, other in zip(ours.parameters(), reference.parameters(), strict=True):
            assert one.grad is not None
            other.grad = torch.randn_like(other)
            one.grad.add_(other.grad)
        adam.advance(1 / (step + 1))
        adam.apply()
        torchs.param_groups[0]["lr"] = 0.01 / (step + 1)
        torchs.step()
    for one, other in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_making_it_changes_no_parameter_nor_its_layout(layout: torch.memory_format) -> None:
    model, reference = a_model(layout), a_model(layout)
    parameters = list(model.parameters())
    FlatAdam(parameters, 0.01)
    for one, kept, other in zip(model.parameters(), parameters, reference.parameters(), strict=True):
        assert one is kept
        assert one.equal(other)
        assert one.stride() == other.stride()


def test_gradients_gather_in_one_vector() -> None:
    model = a_model(torch.channels_last)
    adam = FlatAdam(model.parameters(), 0.01)
    for _ in range(2):
        adam.zero_grad()
        model(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)).square().sum().backward()
    total = sum(float(parameter.grad.square().sum()) for parameter in model.parameters() if parameter.grad is not None)
    assert total > 0
    assert float(adam.gradient.square().sum()) == pytest.approx(total)


def test_its_state_brings_another_to_where_it_was() -> None:
    first, second = a_model(torch.channels_last), a_model(torch.channels_last)
    one, other = FlatAdam(first.parameters(), 0.01), FlatAdam(second.parameters(), 0.01)
    one.gradient.normal_()
    one.advance()
    one.apply()
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    second.load_state_dict(first.state_dict())
    for adam in (one, other):
        adam.gradient.copy_(torch.arange(len(adam.gradient)))
        adam.advance()
        adam.apply()
    assert all(ours.equal(theirs) for ours, theirs in zip(first.parameters(), second.parameters(), strict=True))
