"""Dropout drops as often as it is asked to, keeps the mean, and does nothing when a model predicts."""

import math

import pytest
import torch

from mnist_ray.training.kernels.dropout import Dropout

RATES = [0.001, 0.25, 0.5, 0.6, 0.97]
NUM_ELEMENTS = 1_000_001  # odd: two masks come from one random number
SIGMAS = 5.0


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rate", RATES)
def test_it_drops_at_the_rate_and_scales_the_rest(rate: float) -> None:
    kept = Dropout(rate)(torch.ones(NUM_ELEMENTS, dtype=torch.float64))
    assert set(kept.unique().tolist()) == {0.0, 1.0 / (1.0 - rate)}
    num_dropped = int((kept == 0).sum())
    deviation = math.sqrt(NUM_ELEMENTS * rate * (1 - rate))
    assert abs(num_dropped - NUM_ELEMENTS * rate) < SIGMAS * deviation
    assert abs(float(kept.mean()) - 1.0) < SIGMAS * deviation / (1 - rate) / NUM_ELEMENTS


@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_elements_are_dropped_independently_of_their_neighbours_and_of_the_last_time(rate: float) -> None:
    dropout = Dropout(rate)
    once, again = (dropout(torch.ones(NUM_ELEMENTS)) == 0 for _ in range(2))
    bound = SIGMAS * rate / math.sqrt(NUM_ELEMENTS)
    for other in (once.roll(1), once.roll(2), again):
        assert abs(float((once & other).float().mean()) - rate**2) < bound


@pytest.mark.parametrize("rate", [1 - 1e-9, 1 - 1e-10, 1 - 2**-53])
def test_a_rate_near_one_drops_nearly_everything(rate: float) -> None:
    assert int(Dropout(rate)(torch.ones(1000)).count_nonzero()) == 0


def test_the_same_seed_drops_the_same() -> None:
    dropout, values = Dropout(0.5), torch.ones(1000)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(values))
    assert masks[0].equal(masks[1])
    assert not masks[0].equal(masks[2])


def test_the_gradient_is_the_mask() -> None:
    values = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    kept = Dropout(0.4)(values)
    upstream = torch.randn_like(kept)
    kept.backward(upstream)
    mask = torch.where(kept == 0, 0.0, 1.0 / (1.0 - 0.4)).double()
    torch.testing.assert_close(kept, values * mask)
    torch.testing.assert_close(values.grad, upstream * mask)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_without_dropping_values_pass_untouched(rate: float, training: bool) -> None:
    values = torch.randn(3, 4)
    state = torch.get_rng_state()
    assert Dropout(rate).train(training)(values) is values
    assert torch.get_rng_state().equal(state), "and no random numbers are drawn"


@pytest.mark.parametrize("shape", [(4, 32, 5, 5), (1, 1, 1, 1), (3, 5, 7, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_layout_and_dtype_are_kept(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    values = torch.ones(shape, dtype=dtype).to(memory_format=layout)
    kept = Dropout(0.5)(values)
    assert (kept.shape, kept.stride(), kept.dtype) == (values.shape, values.stride(), dtype)


def test_an_empty_share_of_a_batch_stays_empty() -> None:
    assert Dropout(0.5)(torch.ones(0, 32, 5, 5)).shape == (0, 32, 5, 5)
