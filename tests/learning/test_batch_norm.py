"""Our batch normalisation is torch's: outputs, gradients, running statistics. Several workers: test_workers.py."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.learning.batch_norm import CpuBatchNorm2d, _GlobalBatchNorm, over_global_batch
from mnist_ray.learning.model import MnistCNN

CPU = torch.device("cpu")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(8, 32, 13, 13), (3, 5, 4, 6), (1, 2, 3, 1), (7, 1, 2, 2)]


def a_layer(num_channels: int) -> CpuBatchNorm2d:
    """With weights and statistics that are not those of a new layer."""
    layer = CpuBatchNorm2d(num_channels, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            assert tensor is not None
            tensor.copy_(torch.rand(num_channels) + 0.5)
    return layer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs_batch_norm(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = a_layer(shape[1])
    images = (3 * torch.randn(shape, dtype=torch.float64) + 2).to(memory_format=layout).requires_grad_()
    upstream = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
    reference: dict[str, Tensor] = {
        name: tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for name, tensor in {"images": images.contiguous(), **layer.state_dict(keep_vars=True)}.items()
    }
    reference["images"].requires_grad_()
    expected = functional.batch_norm(
        reference["images"],
        reference["running_mean"],
        reference["running_var"],
        reference["weight"],
        reference["bias"],
        training=True,
        momentum=0.1,
        eps=layer.eps,
    )
    outputs = layer(images)
    expected.backward(upstream.contiguous())
    outputs.backward(upstream)

    torch.testing.assert_close(outputs, expected, rtol=1e-11, atol=1e-11)
    for ours, name in ((images, "images"), (layer.weight, "weight"), (layer.bias, "bias")):
        torch.testing.assert_close(ours.grad, reference[name].grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.running_mean, reference["running_mean"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, reference["running_var"], rtol=1e-12, atol=1e-12)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_gradients_are_those_of_its_outputs(layout: torch.memory_format) -> None:
    """Finite differences, which know no formula."""
    torch.manual_seed(0)
    images = torch.randn(3, 2, 2, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def outputs(*inputs: Tensor) -> Any:
        return _GlobalBatchNorm.apply(*inputs, 1e-5)[0]

    assert torch.autograd.gradcheck(outputs, (images, weight, bias))


def test_large_means_cost_no_precision() -> None:
    """A mean of squares less the square of the mean would have no digit left here."""
    torch.manual_seed(0)
    exact = torch.randn(64, 3, 8, 8, dtype=torch.float64) + 10_000
    images = exact.float()
    outputs = CpuBatchNorm2d(3)(images).detach()
    expected = functional.batch_norm(images.double(), None, None, training=True)
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=2e-3)
    assert abs(float(outputs.std()) - 1) < 1e-3


def test_predicting_uses_the_running_statistics_and_leaves_them() -> None:
    torch.manual_seed(0)
    layer = a_layer(3).eval()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = functional.batch_norm(
        images, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
    )
    assert layer(images).equal(expected)
    assert all(tensor.equal(before[name]) for name, tensor in layer.state_dict().items())


def test_making_it_global_keeps_parameters_and_buffers_the_same_objects() -> None:
    """So an optimizer made before goes on with them, and a saved network reads back under the same names."""
    model = MnistCNN(dropout=0.1)
    before = model.state_dict(keep_vars=True)
    for _ in range(2):  # a second `fit` of the same state makes it global again
        network = over_global_batch(model, CPU)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    kinds = [type(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert kinds == [CpuBatchNorm2d, CpuBatchNorm2d]
    model.eval()
    assert not any(module.training for module in network.modules())


def test_making_it_global_keeps_what_a_layer_was_told() -> None:
    network = over_global_batch(nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)).eval(), CPU)
    [layer] = network.children()
    assert isinstance(layer, CpuBatchNorm2d)
    assert (layer.num_features, layer.eps, layer.momentum, layer.training) == (4, 1e-3, 0.3, False)
