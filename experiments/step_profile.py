"""Where does a step spend its time, and what would make it faster? python -m experiments.step_profile --data-dir FOLDER

Prints the operations of a step of 128 images in one thread by torch's profiler, then times two other ways to compute
parts of it beside what is in use. Neither was taken over (docs/performance.md, "A step, profiled").
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from mnist_ray import data
from mnist_ray.config import TrainingConfig
from mnist_ray.training.augment import NUM_DRAWN
from mnist_ray.training.batch_norm import PIXELS, _global_moments, _Normalised
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples
from mnist_ray.training.loop import Steps, TrainState
from mnist_ray.training.process import prepare_to_train

BATCH = 128
NUM_STEPS = 50
NUM_ROUNDS = 9
LAST = torch.channels_last
EPS = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=data.default_data_dir(), help="where MNIST lies")
    data_dir = parser.parse_args().data_dir
    prepare_to_train(1)
    images = data.load_training("mnist", data_dir)
    _profile(images)
    _parts(images)
    _compare("batch norm and pooling", normalised_then_pooled, pooled_then_normalised)
    _compare("the first convolution", convolved, multiplied)
    matrix = torch.randn(1024, 1024)
    product_s = _seconds(lambda: matrix @ matrix)
    print(f"matrix product: {2e-9 * 1024**3 / product_s:.0f} GFLOP/s")


def _step(images: data.LabelledImages, config: TrainingConfig) -> Callable[[], None]:
    """Return a function that takes a step of a training."""
    examples = Examples.of(images, torch.device("cpu"))
    state = TrainState.initial(config, data.pixel_statistics(images.images))
    steps = Steps.of(state, examples, config, Worker())
    steps.begin_epoch()
    steps.augment(torch.arange(len(examples)), torch.zeros(len(examples), NUM_DRAWN))
    return lambda: steps.take(torch.randint(len(examples), (BATCH,)), BATCH)


def _parts(images: data.LabelledImages) -> None:
    """Time a step with each part of `training` that adds work to it."""
    recipe = TrainingConfig(num_epochs=1)
    for part, value in {"ema": 0.1, "weight_decay": 0.01, "augment": 1.0}.items():
        with_part = recipe.model_copy(update={part: value})
        _compare(f"a step with and without {part}", _step(images, with_part), _step(images, recipe))


def _profile(images: data.LabelledImages) -> None:
    take = _step(images, TrainingConfig(num_epochs=1))
    print(f"a step: {1e3 * _seconds(take):.1f} ms of CPU")
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(NUM_STEPS):
            take()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def _compare(what: str, in_use: Callable[[], object], other: Callable[[], object]) -> None:
    """Time both in turns and print the medians."""
    times = [(_seconds(in_use), _seconds(other)) for _ in range(NUM_ROUNDS)]
    used_s, other_s = (statistics.median(each) for each in zip(*times, strict=True))
    saved = statistics.median(used - new for used, new in times)
    print(f"{what}: {1e3 * used_s:.1f} ms, otherwise {1e3 * other_s:.1f} ms, saves {1e3 * saved:.1f} ms")


def _seconds(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    began = time.process_time()
    for _ in range(NUM_STEPS):
        call()
    return (time.process_time() - began) / NUM_STEPS


# --- normalise, then pool, or pool, then normalise a quarter: the same where the weight is positive

IMAGES = torch.randn(BATCH, 32, 26, 26).to(memory_format=LAST)
UPSTREAM = torch.randn(BATCH, 32, 13, 13).to(memory_format=LAST)
POOLING = ([2, 2], [2, 2], [0, 0], [1, 1], False)


class _PooledFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean, variance, count = _global_moments(images)
        pooled, places = torch.ops.aten.max_pool2d_with_indices(images, *POOLING)
        ctx.save_for_backward(images, pooled, places, weight, mean, variance, count)
        return functional.batch_norm(pooled, mean, variance, weight, bias, eps=EPS)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images, pooled, places, weight, mean, variance, count = ctx.saved_tensors
        (upstream,) = gradients
        inverse_std = torch.rsqrt(variance + EPS)
        of_bias = upstream.sum(PIXELS)
        of_weight = (upstream * (pooled - mean.view(-1, 1, 1))).sum(PIXELS) * inverse_std
        scale = weight * inverse_std
        slope = -scale * inverse_std * of_weight / count
        offset = -scale * of_bias / count - slope * mean
        scaled = upstream * scale.view(-1, 1, 1)
        inputs = torch.ops.aten.max_pool2d_with_indices_backward(scaled, images, *POOLING, places)
        return inputs.addcmul_(images, slope.view(-1, 1, 1)).add_(offset.view(-1, 1, 1)), of_weight, of_bias


def _leaves() -> tuple[Tensor, Tensor, Tensor]:
    return IMAGES.detach().requires_grad_(), torch.ones(32, requires_grad=True), torch.zeros(32, requires_grad=True)


def normalised_then_pooled() -> None:
    outputs: Tensor = _Normalised.apply(*_leaves(), EPS)[0]
    functional.max_pool2d(outputs, 2).backward(UPSTREAM)


def pooled_then_normalised() -> None:
    outputs: Tensor = _PooledFirst.apply(*_leaves())
    outputs.backward(UPSTREAM)


# --- the first convolution by oneDNN, or as a matrix product of its patches

PICTURES = torch.randn(BATCH, 1, 28, 28)
FILTERS = torch.randn(32, 1, 3, 3)


def convolved() -> None:
    filters = FILTERS.to(memory_format=LAST).requires_grad_()
    functional.conv2d(PICTURES.to(memory_format=LAST), filters).backward(IMAGES)


def multiplied() -> None:
    filters = FILTERS.clone().requires_grad_()
    patches = PICTURES[:, 0].unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, 9)
    (patches @ filters.view(32, 9).t()).view(BATCH, 26, 26, 32).permute(0, 3, 1, 2).backward(IMAGES)


if __name__ == "__main__":
    main()
