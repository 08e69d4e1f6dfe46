"""The network of the origin: its size, its shapes, what it takes, and that what is saved is what was trained."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.config import Precision
from mnist_ray.errors import CorruptFileError
from mnist_ray.training.checkpoint import model_from_bytes, model_to_bytes
from mnist_ray.training.evaluation import predict
from mnist_ray.training.kernels.selection import AUTO, PLAIN, Kernels
from mnist_ray.training.model import MnistCNN


def some_images(num_images: int = 4) -> Tensor:
    """(N, 1, 28, 28) uint8, of all values."""
    return torch.randint(0, 256, (num_images, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def a_model() -> MnistCNN:
    """With weights and statistics unlike a new one's."""
    torch.manual_seed(0)
    model = MnistCNN(dropout=0.3, image_mean=0.13, image_std=0.31)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def test_it_has_the_origins_parameters() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in MnistCNN(0.25).named_parameters()}
    assert shapes == {
        "blocks.0.0.weight": (32, 1, 3, 3),
        "blocks.0.0.bias": (32,),
        "blocks.0.1.weight": (32,),
        "blocks.0.1.bias": (32,),
        "blocks.1.0.weight": (32, 32, 3, 3),
        "blocks.1.0.bias": (32,),
        "blocks.1.1.weight": (32,),
        "blocks.1.1.bias": (32,),
        "head.weight": (10, 800),
        "head.bias": (10,),
    }
    assert sum(parameter.numel() for parameter in MnistCNN(0.25).parameters()) == 17_706


def test_images_shrink_as_the_origins_do() -> None:
    """Without padding: 28 -> 26 -> 13 -> 11 -> 5."""
    sizes: list[int] = []
    model = MnistCNN(0.25).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    assert model(some_images()).shape == (4, 10)
    assert sizes == [26, 13, 11, 5]


def test_its_logits_are_those_of_the_layers_written_out() -> None:
    """Batch norm, ReLU, then pooling, as the origin has them; the model pools before ReLU, which is the same."""
    model = a_model().double().eval()
    layers: dict[str, Any] = dict(model.named_modules())
    values = (some_images().double() / 255 - 0.13) / 0.31
    for block in ("blocks.0", "blocks.1"):
        values = torch.relu(layers[f"{block}.1"](layers[f"{block}.0"](values)))
        values = torch.max_pool2d(values, 2)
    torch.testing.assert_close(predict(model, some_images()), model.head(values.flatten(1)), rtol=1e-5, atol=1e-5)


def test_prediction_takes_raw_images_and_is_certain() -> None:
    model = a_model().train()
    logits = predict(model, some_images())
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((4, 10), torch.float32, False)
    assert logits.equal(predict(model, some_images())), "dropout is off"
    one_by_one = torch.cat([predict(model, image[None]) for image in some_images()])
    torch.testing.assert_close(logits, one_by_one, rtol=1e-5, atol=1e-5)


def test_a_model_reads_back_as_what_was_saved() -> None:
    model = a_model().to(memory_format=torch.channels_last)
    again = model_from_bytes(model_to_bytes(model))
    saved, read = model.state_dict(), again.state_dict()
    assert list(saved) == list(read)
    assert all(read[name].equal(tensor) for name, tensor in saved.items())
    assert not again.training
    assert predict(again, some_images()).equal(predict(model.to(memory_format=torch.contiguous_format), some_images()))


def test_what_others_wrote_is_no_model() -> None:
    from safetensors.torch import save

    whole = model_to_bytes(a_model())
    tensors = {name: tensor.contiguous() for name, tensor in a_model().state_dict().items()}
    others = [
        b"",
        b"garbage",
        bytes(10_000),
        whole[:-1],
        whole + b"\0",
        whole[: len(whole) // 2],
        b"\xff" * 8 + whole[8:],
        save({"weight": torch.ones(3)}),
        save(tensors | {"more": torch.ones(1)}),
        save({name: tensor for name, tensor in tensors.items() if name != "head.bias"}),
        save(tensors | {"head.bias": torch.ones(11)}),
    ]
    for content in others:
        with pytest.raises(CorruptFileError, match="not a model of this project"):
            model_from_bytes(content)


HEADER_BYTES = 8 + int.from_bytes(model_to_bytes(MnistCNN(0.0))[:8], "little")


@settings(max_examples=300)
@given(place=st.integers(0, HEADER_BYTES - 1), byte=st.integers(0, 255))
def test_a_damaged_header_ends_in_a_model_or_in_our_own_error(place: int, byte: int) -> None:
    whole = bytearray(model_to_bytes(MnistCNN(0.0)))
    whole[place] = byte
    try:
        model_from_bytes(bytes(whole))
    except CorruptFileError:
        return


@pytest.mark.parametrize("kernels", [AUTO, PLAIN])
def test_only_convolutions_round_in_bfloat16(kernels: Kernels) -> None:
    """Two blocks' products of factors with 8 significant bits: a relative error of some 2**-8."""
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (64,))
    networks = []
    for precision in get_args(Precision):
        torch.manual_seed(0)
        networks.append(MnistCNN(0.0, 0.13, 0.31, precision, kernels).to(memory_format=torch.channels_last).train())
    logits, gradients = [], []
    for network in networks:
        said = network(images)
        functional.cross_entropy(said, labels).backward()
        logits.append(said.detach())
        gradients.append(
            torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
        )
    assert all(each.dtype == torch.float32 for each in (*logits, *gradients))
    assert not logits[0].equal(logits[1]), "the option has an effect"
    assert (logits[0] - logits[1]).norm() / logits[0].norm() < 0.02
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 0.05
    for name, buffer in networks[0].named_buffers():
        other = dict(networks[1].named_buffers())[name]
        torch.testing.assert_close(buffer, other, rtol=0.02, atol=0.02)


def test_a_network_trained_in_bfloat16_predicts_in_float32() -> None:
    images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
    torch.manual_seed(0)
    trained = MnistCNN(0.0, precision="bfloat16").eval()
    plain = MnistCNN(0.0).eval()
    plain.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert trained(images).equal(plain(images))
