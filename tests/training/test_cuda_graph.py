"""Captured steps are used only where they are the eager ones; here a capture that errs takes the place of CUDA's."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from mnist_ray.config import TrainingConfig
from mnist_ray.training import cuda_graph
from mnist_ray.training.checkpoint import SavedState
from mnist_ray.training.cuda_graph import NUM_COMPARED, RAGGED_AT, capture_for, captured_and_compared
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.kernels.flat_adam import FlatAdam
from mnist_ray.training.loop import Steps, TrainState, fit
from tests.training.all_parts import ALL_PARTS

CPU = torch.device("cpu")
CONFIG = TrainingConfig(num_epochs=2, batch_size=32, dropout=0.25)  # 101 digits: the last batch has five
CONFIGS = {
    "auto": CONFIG,
    "plain": CONFIG.model_copy(update={"kernels": "plain"}),
    "auto, all parts": CONFIG.model_copy(update=ALL_PARTS),
    "plain, all parts": CONFIG.model_copy(update={"kernels": "plain", **ALL_PARTS}),
}
Replay = Callable[[], None]


def correct(compute: Replay) -> Replay:
    """Capture as CUDA does, but for the graph: warm up, then replay by computing."""
    for _ in range(3):
        compute()
    return compute


def with_repeated_masks(compute: Replay) -> Replay:
    """Replay with the random numbers of the capture."""
    drawn = torch.get_rng_state()

    def replay() -> None:
        torch.set_rng_state(drawn)
        compute()

    return replay


class Wrong:
    """Captures that go wrong in the optimizer or the network of one training."""

    def __init__(self, state: TrainState) -> None:
        assert isinstance(state.optimizer, FlatAdam)
        assert state.average is not None
        self._model, self._optimizer, self._average = state.model, state.optimizer, state.average

    def with_a_larger_learning_rate(self, compute: Replay) -> Replay:
        """Replay steps that are 5 % too long."""
        return self._each_time(compute, lambda: self._optimizer._step_size.mul_(1.05))

    def with_the_first_step_number(self, compute: Replay) -> Replay:
        """Replay with Adam's corrections for the first step, as a capture of Python's numbers would."""
        return self._each_time(compute, lambda: self._optimizer._square_correction.fill_(1e-3))

    def without_running_statistics(self, compute: Replay) -> Replay:
        def replay() -> None:
            kept = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
            compute()
            for name, buffer in self._model.named_buffers():
                buffer.copy_(kept[name])

        return replay

    def in_whole_batches_only(self, compute: Replay) -> Replay:
        """Replay the batch of 32 that was computed last, wherever a ragged one is due."""
        sizes: list[int] = []
        hook = self._model.register_forward_hook(lambda module, inputs, logits: sizes.append(len(logits)))
        compute()
        hook.remove()
        return compute if sizes[-1] == CONFIG.batch_size else lambda: None

    @staticmethod
    def _each_time(compute: Replay, change: Callable[[], Any]) -> Replay:
        def replay() -> None:
            change()
            compute()

        return replay

    def without_the_average(self, compute: Replay) -> Replay:
        average = self._average

        def replay() -> None:
            kept = {name: tensor.clone() for name, tensor in average.model.state_dict().items()}
            compute()
            average.model.load_state_dict(kept)

        return replay

    def with_the_first_share(self, compute: Replay) -> Replay:
        """Replay with the average's share of the first step, which takes the weights as they are."""
        return self._each_time(compute, lambda: self._average._share.fill_(1.0))


def failing(compute: Replay) -> Replay:
    compute()
    raise RuntimeError("operation not permitted when stream is capturing")


WRONG = [
    "with_a_larger_learning_rate",
    "with_the_first_step_number",
    "without_running_statistics",
    "in_whole_batches_only",
    "without_the_average",
    "with_the_first_share",
]


def a_training(data: TrainingData, config: TrainingConfig = CONFIG) -> tuple[TrainState, Steps]:
    state = TrainState.initial(config, data.statistics)
    return state, Steps.of(state, data.train, config, Worker())


def compared(steps: Steps, data: TrainingData, capture: cuda_graph.Capture) -> list[int]:
    """Return the sizes of batch whose capture was accepted."""
    return sorted(captured_and_compared(steps, len(data.train), CONFIG.batch_size, CPU, capture))


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    return load(SavedState.of(state).tensors)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


@contextmanager
def one_warning(caplog: pytest.LogCaptureFixture, text: str) -> Iterator[None]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield
    [record] = caplog.records
    assert "are not captured as CUDA graphs, which makes them slower" in record.getMessage()
    assert text in record.getMessage()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_correct_capture_is_used(few_digits: TrainingData, name: str) -> None:
    _, steps = a_training(few_digits, CONFIGS[name])
    assert compared(steps, few_digits, correct) == [5, 32]


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_capture_is_refused(few_digits: TrainingData, how: str, caplog: pytest.LogCaptureFixture) -> None:
    state, steps = a_training(few_digits, CONFIG.model_copy(update={"ema": 0.1}))
    next(fit(state, few_digits, CONFIG.model_copy(update={"ema": 0.1})))
    with one_warning(caplog, "ten captured steps differ from eager ones by"):
        assert compared(steps, few_digits, getattr(Wrong(state), how)) == []


def test_repeated_masks_are_refused(few_digits: TrainingData, caplog: pytest.LogCaptureFixture) -> None:
    _, steps = a_training(few_digits)
    with one_warning(caplog, "ten captured steps differ from eager ones by"):
        assert compared(steps, few_digits, with_repeated_masks) == []


def test_a_failed_capture_warns(few_digits: TrainingData, caplog: pytest.LogCaptureFixture) -> None:
    _, steps = a_training(few_digits)
    with one_warning(caplog, "not permitted when stream is capturing"):
        assert compared(steps, few_digits, failing) == []


@pytest.mark.parametrize("capture", [correct, with_repeated_masks, failing])
@pytest.mark.parametrize("name", CONFIGS)
def test_comparing_leaves_no_trace(few_digits: TrainingData, capture: cuda_graph.Capture, name: str) -> None:
    """In the middle of a training, where moments and running statistics are not those of the beginning."""
    state, steps = a_training(few_digits, CONFIGS[name])
    next(fit(state, few_digits, CONFIGS[name]))
    before, drawn = tensors_of(state), torch.get_rng_state()
    compared(steps, few_digits, capture)
    assert equal(tensors_of(state), before)
    assert torch.get_rng_state().equal(drawn)


def test_the_ragged_batch_is_compared() -> None:
    sizes = [len(batch) for batch in cuda_graph._batches(101, 32, CPU)]
    assert len(sizes) == NUM_COMPARED
    assert [position for position, size in enumerate(sizes) if size == 5] == [RAGGED_AT]
    assert {len(batch) for batch in cuda_graph._batches(96, 32, CPU)} == {32}
    assert {len(batch) for batch in cuda_graph._batches(20, 32, CPU)} == {20}
    assert all(batch.max() < 20 for batch in cuda_graph._batches(20, 32, CPU))


@pytest.mark.parametrize(
    ("capture", "mode"), [(correct, "captured"), (with_repeated_masks, "eager"), (failing, "eager")]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_captured_training_is_eager_training(
    few_digits: TrainingData,
    monkeypatch: pytest.MonkeyPatch,
    capture: cuda_graph.Capture,
    mode: str,
    name: str,
) -> None:
    """Bit for bit, whatever came of the capture, and the state says which it was."""
    config = CONFIGS[name]
    expected, _ = a_training(few_digits, config)
    list(fit(expected, few_digits, config))
    assert expected.steps == "eager"

    monkeypatch.setattr("mnist_ray.training.loop.capture_for", lambda device, world_size: capture)
    state, _ = a_training(few_digits, config)
    list(fit(state, few_digits, config))
    assert state.steps == mode
    assert equal(tensors_of(state), tensors_of(expected))


def test_replayed_steps_see_each_batch(few_digits: TrainingData) -> None:
    """Through the one tensor of indices that a capture reads."""
    _, steps = a_training(few_digits)
    seen: list[list[int]] = []
    original = steps.compute

    def compute(share: Tensor, global_batch_size: int) -> None:
        seen.append(share.tolist())
        original(share, global_batch_size)

    steps.compute = compute  # type: ignore[method-assign]
    steps.captured = captured_and_compared(steps, len(few_digits.train), 32, CPU, correct)
    seen.clear()
    for batch in torch.arange(101).split(32):
        steps.take(batch, len(batch))
    assert seen == [batch.tolist() for batch in torch.arange(101).split(32)]


def test_only_a_gpu_of_its_own_captures() -> None:
    gpu = torch.device("cuda")
    assert capture_for(gpu, 1) is cuda_graph.as_cuda_graph
    assert capture_for(gpu, 2) is capture_for(CPU, 1) is None
