"""A study's trainings are those of a job, scored less often."""

from pathlib import Path

import torch

from experiments.trainings import Images, Planned, run_all
from mnist_ray.config import TrainingConfig
from mnist_ray.training.loop import TrainState, fit

IMAGES = Images(Path(), num_train=200, num_held_back=100, data_set="digits")
CONFIG = TrainingConfig(schedule="cosine", ema=0.1, batch_size=64, num_epochs=4, seed=3)


def test_scoring_fewer_epochs_changes_no_score(tmp_path: Path) -> None:
    rows = run_all([Planned("part", CONFIG, scored_after=(2,))], IMAGES, tmp_path / "table.csv", processes=1)
    images = IMAGES.on(torch.device("cpu"))
    every_epoch = [metrics.columns() for metrics in fit(TrainState.initial(CONFIG, images.statistics), images, CONFIG)]
    assert list(rows["epoch"]) == [2, 4]
    for name in ("train_loss", "val_loss", "val_raw_loss", "val_correct"):
        assert list(rows[name]) == [every_epoch[1][name], every_epoch[3][name]]


def test_a_study_goes_on_where_its_table_ends(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    first, second = (Planned("part", CONFIG.model_copy(update={"num_epochs": 1, "seed": seed})) for seed in (0, 1))
    run_all([first], IMAGES, table, processes=1)
    written = table.read_text()
    rows = run_all([first, second], IMAGES, table, processes=1)
    assert table.read_text().startswith(written)
    assert list(rows["seed"]) == [0, 1]
