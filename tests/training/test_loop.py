"""The loop takes the textbook's steps, in an order that follows from the seed, and ends when the loss diverges."""

import dataclasses
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mnist_ray.config import TrainingConfig
from mnist_ray.data import PixelStatistics
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.training.distributed import Worker
from mnist_ray.training.evaluation import evaluate, predict
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import DivergedError, Steps, TrainState, fit, train_one_epoch
from mnist_ray.training.model import MnistCNN

CONFIG = TrainingConfig(num_epochs=2, batch_size=32, dropout=0.25)


def trained(
    data: TrainingData, config: TrainingConfig = CONFIG, dtype: torch.dtype = torch.float32
) -> tuple[TrainState, list[EpochMetrics]]:
    state = TrainState.initial(config, data.statistics, dtype=dtype)
    return state, list(fit(state, data, config))


def weights_of(state: TrainState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


def without_times(history: list[EpochMetrics]) -> list[EpochMetrics]:
    return [dataclasses.replace(metrics, elapsed_s=0.0) for metrics in history]


def test_it_takes_the_steps_of_a_loop_written_by_hand(few_digits: TrainingData) -> None:
    """Whole batches and torch's own layers and mean loss, in float64; dropout off, whose masks are ours."""
    train = Examples(few_digits.train.images[:40], few_digits.train.labels[:40])
    data = dataclasses.replace(few_digits, train=train, validation=train)
    config = TrainingConfig(num_epochs=10, batch_size=40, dropout=0.0, learning_rate=0.01)
    _, reports = trained(data, config, torch.float64)

    by_hand = TrainState.initial(config, data.statistics, dtype=torch.float64).model
    by_hand.to(memory_format=torch.contiguous_format)
    by_hand.blocks = nn.Sequential(*(layer for block in by_hand.blocks for layer in cast(nn.Sequential, block)))
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    for report in reports:
        loss = nn.functional.cross_entropy(by_hand.train()(train.images), train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert report.train.loss == pytest.approx(float(loss.detach()), rel=1e-6)
        assert report.validation is not None
        expected = float(nn.functional.cross_entropy(predict(by_hand, train.images), train.labels))
        assert report.validation.loss == pytest.approx(expected, rel=1e-6)
    assert reports[-1].train.loss < 0.1 * reports[0].train.loss, "and it learns"


def test_a_ragged_batch_weighs_its_examples_like_any_other(few_digits: TrainingData) -> None:
    """101 digits in batches of 100 and 1: the epoch's loss is over examples, not over batches."""
    config = TrainingConfig(num_epochs=1, batch_size=100, dropout=0.0, learning_rate=1e-30)
    shown: list[Tensor] = []
    state = TrainState.initial(config, few_digits.statistics, dtype=torch.float64)
    state.model.register_forward_hook(lambda module, inputs, logits: shown.append(logits.detach()))
    [report] = fit(state, dataclasses.replace(few_digits, validation=None), config)
    assert [len(logits) for logits in shown] == [100, 1]
    assert report.train.num_examples == 101
    # With no learning, the sum over both batches can be had from their logits once the labels are in their order.
    order = _order_of(shown, few_digits, config)
    expected = float(nn.functional.cross_entropy(torch.cat(shown), few_digits.train.labels[order]))
    assert report.train.loss == pytest.approx(expected, rel=1e-12)


def _order_of(shown: list[Tensor], data: TrainingData, config: TrainingConfig) -> Tensor:
    from mnist_ray.training.loop import _seeded

    with _seeded(config.seed, "order", 1):
        return torch.randperm(len(data.train))


def test_the_same_seed_trains_the_same_whatever_was_drawn_before(few_digits: TrainingData) -> None:
    torch.manual_seed(1)
    first, reports = trained(few_digits)
    torch.manual_seed(2)
    second, again = trained(few_digits)
    assert equal(weights_of(first), weights_of(second))
    assert without_times(first.history) == without_times(second.history)
    assert [report.epoch for report in reports] == [report.epoch for report in again] == [1, 2]


@pytest.mark.parametrize("change", [{"seed": 1}, {"dropout": 0.3}, {"learning_rate": 0.002}, {"batch_size": 31}])
def test_each_setting_counts(few_digits: TrainingData, change: dict[str, Any]) -> None:
    config = CONFIG.model_copy(update={"num_epochs": 1})
    state, _ = trained(few_digits, config)
    other, _ = trained(few_digits, config.model_copy(update=change))
    assert not equal(weights_of(state), weights_of(other))


def test_training_leaves_the_random_state_as_it_was(few_digits: TrainingData) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(few_digits, CONFIG.model_copy(update={"num_epochs": 1}))
    assert torch.get_rng_state().equal(before)


def test_each_epoch_and_each_rank_draws_its_own_masks(few_digits: TrainingData) -> None:
    """The same masks every epoch, or on every rank, would leave out the same features again and again."""
    seeds = []
    for epoch, rank in ((1, 0), (2, 0), (1, 1), (1, 0)):
        state = TrainState.initial(CONFIG, few_digits.statistics)
        drawn: list[int] = []
        state.model.register_forward_hook(
            lambda module, inputs, output, drawn=drawn: drawn.append(torch.initial_seed())
        )
        worker = Worker(rank, 2)
        steps = Steps(state.model, state.optimizer, few_digits.train, worker)
        train_one_epoch(steps, len(few_digits.train), CONFIG, epoch, worker)
        assert len(set(drawn)) == 1
        seeds.append(drawn[0])
    assert len({*seeds[:3]}) == 3
    assert seeds[3] == seeds[0]


def test_initial_weights_follow_from_the_seed_alone() -> None:
    """So every rank of any number of ranks begins with the same, and so does a trial with other hyperparameters."""
    statistics = PixelStatistics(0.1, 0.3)
    first = TrainState.initial(CONFIG, statistics)
    other = TrainState.initial(CONFIG.model_copy(update={"dropout": 0.0, "batch_size": 7}), statistics, Worker(2, 3))
    assert equal(weights_of(first), weights_of(other))
    reseeded = TrainState.initial(CONFIG.model_copy(update={"seed": 1}), statistics)
    assert not equal(weights_of(first), weights_of(reseeded))


def test_the_network_normalises_with_the_statistics_it_was_given(few_digits: TrainingData) -> None:
    state = TrainState.initial(CONFIG, few_digits.statistics)
    seen: list[Tensor] = []
    state.model.blocks.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    predict(state.model, few_digits.train.images)
    assert abs(float(seen[0].mean())) < 1e-5
    assert abs(float(seen[0].std(correction=0)) - 1) < 1e-5


def test_an_epoch_reports_what_its_names_say(few_digits: TrainingData) -> None:
    state, [*_, last] = trained(few_digits)
    assert few_digits.validation is not None
    score = evaluate(state.model, few_digits.validation)
    assert last.validation == score
    assert last.elapsed_s > 0
    assert state.completed_epochs == last.epoch == 2
    assert state.history[-1] == last
    assert list(last.columns()) == [
        *("epoch", "elapsed_s"),
        *("train_loss", "train_accuracy", "train_correct", "train_examples"),
        *("val_loss", "val_accuracy", "val_correct", "val_examples"),
    ]
    assert last.columns()["val_accuracy"] == score.num_correct / 40
    without = EpochMetrics(1, 0.5, Score(1.0, 1, 2), None).columns()
    assert without == {
        **{"epoch": 1, "elapsed_s": 0.5, "train_loss": 1.0, "train_accuracy": 0.5},
        **{"train_correct": 1, "train_examples": 2},
    }


def test_dropout_is_on_while_training_and_off_while_validating(few_digits: TrainingData) -> None:
    """In every epoch, and training goes on with it after validating."""
    modes: list[bool] = []
    state = TrainState.initial(CONFIG, few_digits.statistics)
    state.model.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    list(fit(state, few_digits, CONFIG))
    num_batches = math.ceil(101 / 32)
    assert modes == 2 * ([True] * num_batches + [False])


def test_divergence_ends_the_training_with_epoch_and_value(few_digits: TrainingData) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e12, "num_epochs": 50})
    state = TrainState.initial(config, few_digits.statistics)
    with pytest.raises(DivergedError) as caught:
        list(fit(state, few_digits, config))
    epoch = state.completed_epochs + 1
    assert str(caught.value) in [
        f"diverged: {name} is {value} in epoch {epoch}"
        for name in ("train_loss", "val_loss")
        for value in ("nan", "inf")
    ]
    assert len(state.history) == state.completed_epochs
    assert all(
        math.isfinite(loss) for metrics in state.history for loss in (metrics.train.loss, metrics.objective("val_loss"))
    )


def test_divergence_is_seen_without_a_validation_split(few_digits: TrainingData) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e12, "num_epochs": 50})
    state = TrainState.initial(config, few_digits.statistics)
    with pytest.raises(DivergedError, match=r"diverged: train_loss is (nan|inf) in epoch \d+"):
        list(fit(state, dataclasses.replace(few_digits, validation=None), config))


def test_divergence_seen_only_in_validation_counts(few_digits: TrainingData) -> None:
    """One step an epoch: the loss before it is finite, the weights after it are not."""
    config = TrainingConfig(num_epochs=2, batch_size=101, learning_rate=1e37)
    state = TrainState.initial(config, few_digits.statistics)
    with pytest.raises(DivergedError, match=r"val_loss is (nan|inf) in epoch 1"):
        list(fit(state, few_digits, config))
    assert (state.completed_epochs, state.history) == (0, [])


def test_a_finished_state_has_nothing_left_to_train(few_digits: TrainingData) -> None:
    state, _ = trained(few_digits)
    before = weights_of(state)
    assert list(fit(state, few_digits, CONFIG)) == []
    assert equal(weights_of(state), before)


def test_what_is_trained_is_the_states_own_model(few_digits: TrainingData) -> None:
    state, _ = trained(few_digits)
    assert isinstance(state.model, MnistCNN)
    untrained = TrainState.initial(CONFIG, few_digits.statistics)
    changed = {name for name, tensor in weights_of(state).items() if not tensor.equal(weights_of(untrained)[name])}
    assert changed == set(weights_of(state)) - {"image_mean", "image_std"}
