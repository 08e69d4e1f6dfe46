"""Normalising and pooling at once is torch's one after the other. Several workers: test_workers.py."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.training.kernels.batch_norm_pool import _NormalisedPool, normalised_and_pooled
from mnist_ray.training.kernels.selection import AUTO
from mnist_ray.training.model import MnistCNN

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(8, 32, 13, 13), (3, 5, 4, 6), (1, 2, 3, 2), (7, 1, 2, 2)]


def a_layer(num_channels: int) -> nn.BatchNorm2d:
    """With weights of both signs, and statistics that are not those of a new layer."""
    layer = nn.BatchNorm2d(num_channels, momentum=0.3, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            assert tensor is not None
            tensor.copy_(torch.rand(num_channels) + 0.5)
        layer.weight[::2].neg_()
    return layer


def at_once(images: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    sign = layer.weight.detach().sign()
    return normalised_and_pooled(images * sign.view(-1, 1, 1), layer, layer.weight * sign, sign)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs_batch_norm_and_pooling(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = a_layer(shape[1])
    reference = copy.deepcopy(layer)
    images = (3 * torch.randn(shape, dtype=torch.float64) + 2).to(memory_format=layout).requires_grad_()
    same_images = images.detach().contiguous().requires_grad_()

    expected = functional.max_pool2d(reference(same_images), 2)
    outputs = at_once(images, layer)
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    expected.backward(upstream)
    outputs.backward(upstream.to(memory_format=layout))

    torch.testing.assert_close(outputs, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(images.grad, same_images.grad, rtol=1e-10, atol=1e-10)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-10)
    for name, statistic in reference.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), statistic, rtol=1e-12, atol=1e-12)


def test_its_gradients_are_those_of_its_outputs() -> None:
    """Finite differences, which know no formula."""
    torch.manual_seed(0)
    images = torch.randn(3, 2, 4, 3, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    weight = (torch.rand(2, dtype=torch.float64) + 0.1).requires_grad_()
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def outputs(*inputs: Tensor) -> Any:
        return _NormalisedPool.apply(*inputs, 1e-5)[0]

    assert torch.autograd.gradcheck(outputs, (images, weight, bias))


def test_large_means_cost_no_precision() -> None:
    """A mean of squares less the square of the mean would have no digit left here."""
    torch.manual_seed(0)
    images = (torch.randn(64, 3, 8, 8, dtype=torch.float64) + 10_000).float()
    outputs = at_once(images, nn.BatchNorm2d(3)).detach()
    expected = functional.max_pool2d(functional.batch_norm(images.double(), None, None, training=True), 2)
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=2e-3)
    assert float(outputs.std()) > 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_network_learns_as_its_layers_would_one_after_another(layout: torch.memory_format) -> None:
    """Logits, gradients and running statistics in float64, with filters that are to be turned round."""
    torch.manual_seed(0)
    model = MnistCNN(dropout=0.0, image_mean=0.1, image_std=0.3, kernels=AUTO).double()
    with torch.no_grad():
        for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.weight.copy_(torch.randn(32))
    reference = copy.deepcopy(model)
    model.to(memory_format=layout)
    images, labels = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (16,))

    values = (images.double() - reference.image_mean) / reference.image_std
    for block in reference.blocks:
        assert isinstance(block, nn.Sequential)
        for layer in block:
            values = layer(values)
    expected = reference.head(values.flatten(1))
    logits = model(images)
    for one in (expected, logits):
        functional.cross_entropy(one, labels).backward()

    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-10)
    for name, statistic in reference.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), statistic, rtol=1e-11, atol=1e-11)


def test_predicting_uses_the_running_statistics_and_leaves_them() -> None:
    torch.manual_seed(0)
    model = MnistCNN(dropout=0.5, kernels=AUTO).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert model(images).equal(model(images))
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
