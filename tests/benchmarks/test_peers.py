"""What mnist_ray is compared with does the same work, and the figures of the comparison are right."""

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from mnist_ray import data
from mnist_ray.benchmarks import peers
from mnist_ray.benchmarks.peers import Ran, Sizes, Turn, measure_peers, search_section, take_turns, training_section
from mnist_ray.errors import SpecError
from mnist_ray.pipeline.capacity import Capacity
from mnist_ray.ray_backend.compat import ENVIRONMENT
from mnist_ray.ray_backend.documented.figures import Epoch, Figures
from mnist_ray.ray_backend.documented.mnist import accuracy, images_of, network, train_epoch
from mnist_ray.training.model import MnistCNN

SMALL = Sizes("digits", num_images=200, num_validation=50, num_trials=2, epochs_of_training=2, batch_size=32)


def ran(whole_s: float, work_s: float, *epochs_s: float) -> Ran:
    return Ran(whole_s, Figures(work_s, [Epoch(elapsed_s, 7, 200) for elapsed_s in epochs_s]))


# --- the section


def test_ratios_are_medians_of_pairs() -> None:
    turns = [
        Turn(ran(30, 20, 3, 5, 4), ran(10, 5, 1, 2, 3)),
        Turn(ran(40, 30, 6), ran(40, 10, 3)),
        Turn(ran(100, 40, 8), ran(20, 4, 2)),
    ]
    for section, what in ((search_section(turns, SMALL), "search"), (training_section(turns, SMALL), "training")):
        assert list(section.ratios.values()) == [3.0, 4.0, 2.0]
        assert [row["whole program, s"] for row in section.rows] == [40, 20]
        assert [row[f"{what}, s"] for row in section.rows] == [30, 5]
        assert [row["an epoch, s"] for row in section.rows] == [6, 2]
        assert section.rows[0]["steps"] == 21 and section.rows[0]["images"] == "600"
        assert "3 round(s) in turns" in section.text and "200 images" in section.text


def test_a_single_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "local_capacity", lambda: Capacity(1, 0))
    with pytest.raises(SpecError, match="peers trains with 2 workers"):
        measure_peers(Path(), 1, SMALL)


# --- the documented programs


def test_the_documented_network_is_ours() -> None:
    shapes = [parameter.shape for parameter in network().parameters()]
    assert shapes == [parameter.shape for parameter in MnistCNN(dropout=0.25).parameters()]


def test_torchvision_reads_the_same_images(tmp_path: Path) -> None:
    peers.write_for_torchvision(tmp_path, SMALL, tmp_path)
    whole = data.load_training("digits", tmp_path)
    halves = [images_of(str(tmp_path), train) for train in (True, False)]
    assert [len(half) for half in halves] == [200, 50]
    for half, start in zip(halves, (0, 200), strict=True):
        part = slice(start, start + len(half))
        assert torch.equal(half.data, torch.tensor(whole.images[part, 0]))
        assert torch.equal(half.targets, torch.tensor(whole.labels[part]))


def test_the_documented_loop_counts_and_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peers.write_for_torchvision(tmp_path, SMALL, tmp_path)
    loader = DataLoader(images_of(str(tmp_path), train=True), batch_size=32, shuffle=True)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    assert [train_epoch(model, optimizer, loader) for _ in range(5)] == [(7, 200)] * 5
    assert accuracy(model, loader) > 0.7


def test_settings_of_mnist_ray_are_out_of_the_environment_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "ours")
    with peers._ray_as_installed():
        left = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        assert left == {"RAY_USAGE_STATS_ENABLED": "0"}
    assert all(os.environ[name] == "ours" for name in ENVIRONMENT)


# --- all of it


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_peers_do_the_same_work(tmp_path: Path) -> None:
    turns = take_turns(tmp_path, 1, SMALL)
    for turn in (*turns.searches, *turns.trainings):
        for each in (turn.documented, turn.ours):
            assert (each.figures.num_steps, each.figures.num_images) == (14, 400)  # of two trials, of two epochs
            assert 0 < each.epoch_s < each.figures.work_s < each.whole_s
    for section in (search_section(turns.searches, SMALL), training_section(turns.trainings, SMALL)):
        assert [row["steps"] for row in section.rows] == [14, 14]
        assert all(ratio > 0 for ratio in section.ratios.values())
