"""Images change as the numbers say that were drawn for them."""

import pytest
import torch
from torch import Tensor

from mnist_ray.config import TrainingConfig
from mnist_ray.training import loop
from mnist_ray.training.augment import Augmentation, mapped, maps_of
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.loop import Steps, TrainState, fit, train_one_epoch

CENTRE = 13.5  # of 28 pixels, counted from 0


def spots(*places: tuple[float, float]) -> Tensor:
    """Draw a soft spot for each place, in pixels to the right of the centre and below it: (1, 1, 28, 28) uint8."""
    pixels = torch.arange(28) - CENTRE
    image = torch.zeros(28, 28)
    for right, down in places:
        image += torch.exp(-((pixels[None] - right) ** 2 + (pixels[:, None] - down) ** 2) / 4)
    return (200 * image).round().to(torch.uint8)[None, None]


def centre_of(image: Tensor) -> tuple[float, float]:
    """Return the centre of mass in pixels to the right of the centre and below it. image: (1, 1, 28, 28)."""
    pixels, weights = torch.arange(28) - CENTRE, image[0, 0] / image.sum()
    return float((weights.sum(dim=0) * pixels).sum()), float((weights.sum(dim=1) * pixels).sum())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([0, 0, 0, 0, 0], (8, 0)),
        ([1, 0, 0, 0, 0], (7.878, -1.389)),  # 8 (cos 10, -sin 10): anticlockwise
        ([-2, 0, 0, 0, 0], (7.518, 2.736)),
        ([0, 1, 0, 0, 0], (8.8, 0)),
        ([0, -1, 0, 0, 0], (7.2, 0)),
        ([0, 0, 1, 0, 0], (8, 0)),
        ([0, 0, 0, 1, 0], (10, 0)),
        ([0, 0, 0, -0.5, 0], (7, 0)),
        ([0, 0, 0, 0, 1], (8, 2)),
        ([1, 1, 0, -1, -1], (6.666, -3.528)),  # 8.8 (cos 10, -sin 10) - (2, 2): shifted last
    ],
)
def test_a_spot_goes_where_it_should(changes: list[float], expected: tuple[float, float]) -> None:
    moved = mapped(spots((8, 0)), maps_of(torch.tensor([changes], dtype=torch.float32), 28, 28))
    assert centre_of(moved) == pytest.approx(expected, abs=0.03)


def test_height_scales_what_is_below() -> None:
    moved = mapped(spots((0, 8)), maps_of(torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]]), 28, 28))
    assert centre_of(moved) == pytest.approx((0, 8.8), abs=0.03)


def test_no_change_is_the_image() -> None:
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(mapped(images, maps_of(torch.zeros(3, 5), 28, 28)), images.float(), rtol=0, atol=1e-3)


def test_outside_is_dark() -> None:
    bright = torch.full((1, 1, 28, 28), 255, dtype=torch.uint8)
    moved = mapped(bright, maps_of(torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]]), 28, 28))
    assert float(moved[0, 0, :, :2].max()) < 1e-3
    assert float(moved[0, 0, :, 3:].min()) > 254.9


def seen_by(data: TrainingData, config: TrainingConfig, num_workers: int, epoch: int = 1) -> Tensor:
    """Return the images of one epoch as the ranks of so many workers see them, put together again."""
    seen: dict[tuple[int, int], Tensor] = {}
    for rank in range(num_workers):
        worker = Worker(rank, num_workers)
        state = TrainState.initial(config, data.statistics)
        state.model.register_forward_pre_hook(
            lambda module, inputs, rank=rank: seen.update({(len(seen), rank): inputs[0].clone()})
        )
        train_one_epoch(Steps.of(state, data.train, config, worker), len(data.train), config, epoch, worker)
    parts = [[images for (_, rank), images in seen.items() if rank == each] for each in range(num_workers)]
    return torch.cat([images for batch in zip(*parts, strict=True) for images in batch])


CONFIG = TrainingConfig(num_epochs=2, batch_size=32, dropout=0.0, augment=1.0)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_see_the_same_images(few_digits: TrainingData, num_workers: int) -> None:
    """Bit for bit; the last batch has five images."""
    alone = seen_by(few_digits, CONFIG, 1)
    assert alone.shape == (101, 1, 28, 28)
    assert seen_by(few_digits, CONFIG, num_workers).equal(alone)


def test_the_cut_into_batches_changes_no_image(few_digits: TrainingData) -> None:
    other = CONFIG.model_copy(update={"batch_size": 17})
    assert seen_by(few_digits, other, 1).equal(seen_by(few_digits, CONFIG, 1))


def test_each_epoch_draws_anew(few_digits: TrainingData) -> None:
    """Compared in the examples' own order."""
    epochs = []
    for epoch in (1, 2):
        with loop._seeded(CONFIG.seed, "order", epoch):
            order = torch.randperm(101)
        images = torch.empty(101, 1, 28, 28)
        images[order] = seen_by(few_digits, CONFIG, 1, epoch)
        epochs.append(images)
    differences = (epochs[0] - epochs[1]).abs().amax(dim=(1, 2, 3))
    assert float(differences.min()) > 1


def test_strength_multiplies_what_is_drawn(few_digits: TrainingData) -> None:
    order, drawn = torch.arange(101), torch.rand(101, 5)
    images = few_digits.train.images
    single, double = Augmentation(few_digits.train, 1.0), Augmentation(few_digits.train, 2.0)
    single.begin_epoch(order, 2 * drawn)
    double.begin_epoch(order, drawn)
    assert single(images, order).equal(double(images, order))


def test_validation_images_stay_as_they_are(few_digits: TrainingData) -> None:
    state = TrainState.initial(CONFIG, few_digits.statistics)
    kinds: list[tuple[bool, torch.dtype]] = []
    state.model.register_forward_pre_hook(lambda module, inputs: kinds.append((module.training, inputs[0].dtype)))
    list(fit(state, few_digits, CONFIG))
    assert set(kinds) == {(True, torch.float32), (False, torch.uint8)}
