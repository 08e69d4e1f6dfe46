"""Stopped and resumed is uninterrupted, bit for bit; a checkpoint that is torn or another's is never used."""

import dataclasses
import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from mnist_ray.config import TrainingConfig
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.training.checkpoint import MANIFEST_NAME, TENSORS_NAME, Checkpoints, SavedState, fit_resumably
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.loop import DivergedError, TrainState, fit
from tests.training.all_parts import ALL_PARTS

FOUR = TrainingConfig(num_epochs=4, batch_size=32, dropout=0.4, seed=3)
BATCHES_PER_EPOCH = 4


@dataclasses.dataclass
class Outcome:
    """All that a training leaves, but for the seconds that it took."""

    completed_epochs: int
    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, state: TrainState) -> "Outcome":
        saved = SavedState.of(state)
        history = [{**metrics.columns(), "elapsed_s": 0.0} for metrics in saved.history]
        return cls(saved.completed_epochs, history, load(saved.tensors))

    def differences(self, other: "Outcome") -> list[str]:
        names = self.tensors.keys() | other.tensors.keys()
        different = [
            name
            for name in sorted(names)
            if name not in self.tensors
            or name not in other.tensors
            or not self.tensors[name].equal(other.tensors[name])
        ]
        facts = {
            "history": self.history == other.history,
            "completed_epochs": self.completed_epochs == other.completed_epochs,
        }
        return different + [name for name, is_same in facts.items() if not is_same]


def uninterrupted(data: TrainingData, config: TrainingConfig) -> Outcome:
    state = TrainState.initial(config, data.statistics)
    for _ in fit(state, data, config):
        pass
    return Outcome.of(state)


def stopped_and_resumed(
    data: TrainingData,
    config: TrainingConfig,
    folder: Path,
    damage: Callable[[SavedState], SavedState] = lambda saved: saved,
) -> Outcome:
    """Two epochs, then a new state that goes on from the files. `damage` changes what is read from them."""

    class Damaged(Checkpoints):
        def latest(self) -> SavedState | None:
            saved = super().latest()
            return saved and damage(saved)

    for state in fit_resumably(config, data, Checkpoints(folder, config, every_s=0.0)):
        if state.completed_epochs == 2:
            break
    torch.manual_seed(99)  # another process, where everything else was drawn
    *_, state = fit_resumably(config, data, Damaged(folder, config, every_s=0.0))
    return Outcome.of(state)


@pytest.fixture(scope="module")
def four_epochs(few_digits: TrainingData) -> Outcome:
    return uninterrupted(few_digits, FOUR)


def test_two_epochs_and_two_are_four(few_digits: TrainingData, four_epochs: Outcome, tmp_path: Path) -> None:
    outcome = stopped_and_resumed(few_digits, FOUR, tmp_path)
    assert outcome.differences(four_epochs) == []
    assert outcome.completed_epochs == len(outcome.history) == 4
    assert int(outcome.tensors["optimizer.num_steps"]) == 4 * BATCHES_PER_EPOCH


@pytest.mark.parametrize(
    "change", [{"dropout": 0.0}, {"batch_size": 101}, {"num_epochs": 3}, ALL_PARTS, {"schedule": "one_cycle"}]
)
def test_so_with_other_settings(few_digits: TrainingData, change: dict[str, Any], tmp_path: Path) -> None:
    config = FOUR.model_copy(update=change)
    assert stopped_and_resumed(few_digits, config, tmp_path).differences(uninterrupted(few_digits, config)) == []


def without(part: str) -> Callable[[SavedState], SavedState]:
    """What a checkpoint that forgot `part` (an end of tensors' names) would bring back: as in the beginning."""

    def damage(saved: SavedState) -> SavedState:
        tensors = load(saved.tensors)
        forgotten = [name for name in tensors if name.endswith(part)]
        assert forgotten, part
        fresh = torch.Generator().manual_seed(0)
        for name in forgotten:
            tensor = tensors[name]
            is_weight = part in (".weight", ".bias")
            tensors[name] = torch.rand(tensor.shape, generator=fresh) if is_weight else torch.zeros_like(tensor)
        return dataclasses.replace(saved, tensors=save(tensors))

    return damage


PARTS = {
    **{
        part: without(part)
        for part in (
            *("optimizer.mean", "optimizer.mean_square", "optimizer.num_steps"),
            *(".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked"),
        )
    },
    "completed_epochs": lambda saved: dataclasses.replace(saved, completed_epochs=0),
    "history": lambda saved: dataclasses.replace(saved, history=[]),
}


@pytest.mark.parametrize("part", PARTS)
def test_no_part_of_the_state_can_be_left_out(
    few_digits: TrainingData, four_epochs: Outcome, tmp_path: Path, part: str
) -> None:
    """So the test above would see it: each part changes what comes out, or cannot be done without."""
    outcome = stopped_and_resumed(few_digits, FOUR, tmp_path, PARTS[part])
    assert outcome.differences(four_epochs)


def test_the_average_cannot_be_left_out(few_digits: TrainingData, tmp_path: Path) -> None:
    config = FOUR.model_copy(update=ALL_PARTS)
    expected = uninterrupted(few_digits, config)
    assert {f"average.{name.removeprefix('model.')}" for name in expected.tensors if name.startswith("model.")} == {
        name for name in expected.tensors if name.startswith("average.")
    }

    def without_average(saved: SavedState) -> SavedState:
        tensors = load(saved.tensors)
        forgotten = {name: torch.zeros_like(each) for name, each in tensors.items() if name.startswith("average.")}
        return dataclasses.replace(saved, tensors=save(tensors | forgotten))

    assert stopped_and_resumed(few_digits, config, tmp_path, without_average).differences(expected)


def test_the_state_holds_every_tensor_of_model_and_optimizer(four_epochs: Outcome) -> None:
    names = {name.split(".", 1)[1] for name in four_epochs.tensors if name.startswith("model.")}
    state = TrainState.initial(FOUR, statistics=_statistics())
    assert names == set(state.model.state_dict())
    moments = {name: tensor for name, tensor in four_epochs.tensors.items() if name.startswith("optimizer.")}
    num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    sizes = {name: tensor.numel() for name, tensor in moments.items()}
    assert sizes == {
        "optimizer.mean": num_parameters,
        "optimizer.mean_square": num_parameters,
        "optimizer.num_steps": 1,
    }


def _statistics() -> Any:
    from mnist_ray.data import PixelStatistics

    return PixelStatistics(0.1, 0.3)


def test_states_are_yielded_after_each_epoch_and_once_at_the_start_of_what_was_resumed(
    few_digits: TrainingData, four_epochs: Outcome, tmp_path: Path
) -> None:
    """Who listens sees every row of the history at least once, whatever was reported before an interruption."""
    checkpoints = Checkpoints(tmp_path, FOUR, every_s=0.0)
    first_two = zip(range(2), fit_resumably(FOUR, few_digits, checkpoints), strict=False)
    seen = [state.completed_epochs for _, state in first_two]
    assert seen == [1, 2]
    assert [state.completed_epochs for state in fit_resumably(FOUR, few_digits, checkpoints)] == [2, 3, 4]
    [finished] = fit_resumably(FOUR, few_digits, checkpoints)
    assert Outcome.of(finished).differences(four_epochs) == []


# --- what lies in the folder


def a_saved(completed_epochs: int) -> SavedState:
    tensors = {"model.x": torch.full((3,), float(completed_epochs))}
    history = [EpochMetrics(epoch + 1, 0.5, Score(0.1 + 0.2, 1, 2), None) for epoch in range(completed_epochs)]
    return SavedState(completed_epochs, history, save(tensors))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FOUR)
    assert checkpoints.latest() is None
    checkpoints.save(a_saved(1))
    assert checkpoints.latest() == a_saved(1)
    assert Checkpoints(tmp_path, FOUR).latest() == a_saved(1)


def test_what_was_taken_of_a_state_does_not_change_with_it(few_digits: TrainingData) -> None:
    state = TrainState.initial(FOUR, few_digits.statistics)
    epochs = fit(state, few_digits, FOUR)
    next(epochs)
    saved = SavedState.of(state)
    copied = dataclasses.replace(saved, history=list(saved.history))
    next(epochs)
    assert saved == copied


def test_the_latest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FOUR)
    for epoch in range(1, 5):
        checkpoints.save(a_saved(epoch))
        assert checkpoints.latest() == a_saved(epoch)
        assert names_in(tmp_path) == [f"epoch-{kept:04d}" for kept in (epoch - 1, epoch) if kept]


def test_the_latest_is_the_latest_beyond_four_digits(tmp_path: Path) -> None:
    """As texts, epoch-10000 comes before epoch-9999."""
    checkpoints = Checkpoints(tmp_path, FOUR)
    for epoch in (9_999, 10_000):
        checkpoints.save(a_saved(epoch))
        assert checkpoints.latest() == a_saved(epoch)
    assert names_in(tmp_path) == ["epoch-10000", "epoch-9999"], "both are kept"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda folder: (folder / MANIFEST_NAME).unlink(),
    "no tensors": lambda folder: (folder / TENSORS_NAME).unlink(),
    "empty folder": empty,
    "empty manifest": lambda folder: (folder / MANIFEST_NAME).write_bytes(b""),
    "empty tensors": lambda folder: (folder / TENSORS_NAME).write_bytes(b""),
    "cut manifest": lambda folder: cut(folder / MANIFEST_NAME),
    "cut tensors": lambda folder: cut(folder / TENSORS_NAME),
    "tensors of another epoch": lambda folder: (folder / TENSORS_NAME).write_bytes(a_saved(7).tensors),
    "manifest is no JSON": lambda folder: (folder / MANIFEST_NAME).write_bytes(b"\xff garbage"),
    "tensors are a folder": lambda folder: replace_by_folder(folder / TENSORS_NAME),
    "a file in its place": replace_by_file,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, FOUR)
    for epoch in (1, 2):
        checkpoints.save(a_saved(epoch))
    DAMAGES[how](tmp_path / "epoch-0002")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() == a_saved(1)
    assert f"checkpoint {tmp_path / 'epoch-0002'} is not used" in caplog.text
    DAMAGES[how](tmp_path / "epoch-0001")
    assert checkpoints.latest() is None


def test_no_flipped_bit_is_believed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FOUR, num_kept=1)
    checkpoints.save(a_saved(3))
    chance = random.Random(0)
    for name in (TENSORS_NAME, MANIFEST_NAME):
        path = tmp_path / "epoch-0003" / name
        whole = path.read_bytes()
        for _ in range(200):
            place = chance.randrange(len(whole))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
            assert checkpoints.latest() is None
        path.write_bytes(whole)
    assert checkpoints.latest() == a_saved(3)


def test_training_goes_on_from_before_the_damage(
    few_digits: TrainingData, four_epochs: Outcome, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, FOUR, every_s=0.0)
    for state in fit_resumably(FOUR, few_digits, checkpoints):
        if state.completed_epochs == 3:
            break
    cut(tmp_path / "epoch-0003" / TENSORS_NAME)
    states = fit_resumably(FOUR, few_digits, checkpoints)
    assert next(states).completed_epochs == 2
    *_, state = states
    assert Outcome.of(state).differences(four_epochs) == []


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"dropout": 0.1}, {"batch_size": 64}, {"num_epochs": 5}, {"learning_rate": 0.1}]
)
def test_a_checkpoint_of_another_training_is_not_used(
    tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    Checkpoints(tmp_path, FOUR).save(a_saved(2))
    other = FOUR.model_copy(update=change)
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path, other).latest() is None
    assert "belongs to another training" in caplog.text
    assert str(tmp_path / "epoch-0002") in caplog.text


def test_unusable_checkpoints_do_not_drive_out_new_ones(tmp_path: Path) -> None:
    """A training that had to begin again keeps its own first epochs, though later ones lie there."""
    for epoch in (8, 9):
        Checkpoints(tmp_path, FOUR.model_copy(update={"seed": 4})).save(a_saved(epoch))
    checkpoints = Checkpoints(tmp_path, FOUR)
    for epoch in (1, 2, 3):
        checkpoints.save(a_saved(epoch))
        assert checkpoints.latest() == a_saved(epoch)
    assert names_in(tmp_path) == ["epoch-0002", "epoch-0003"]


def test_a_failed_save_leaves_the_earlier_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, FOUR)
    checkpoints.save(a_saved(1))
    (tmp_path / "epoch-0002").write_bytes(b"in the way")
    with pytest.raises(OSError, match="epoch-0002"):
        checkpoints.save(a_saved(2))
    assert checkpoints.latest() == a_saved(1)


def test_saving_is_rare_but_for_the_last_epoch(
    few_digits: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most once per `every_s`, and always at the end."""
    seconds = [0.0]
    monkeypatch.setattr("mnist_ray.training.checkpoint.time.monotonic", lambda: seconds[0])
    config = TrainingConfig(num_epochs=10)
    checkpoints = Checkpoints(tmp_path, config, every_s=5.0, num_kept=99)
    state = TrainState.initial(config, few_digits.statistics)
    for epoch in range(1, 11):
        seconds[0] += 2.0
        state.completed_epochs = epoch
        checkpoints.save_if_due(state)
    assert names_in(tmp_path) == ["epoch-0003", "epoch-0006", "epoch-0009", "epoch-0010"]


def test_a_checkpoint_is_readable_by_others(few_digits: TrainingData, tmp_path: Path) -> None:
    """Safetensors and JSON, no pickle: what is read from a disk cannot run anything."""
    [*_] = fit_resumably(
        FOUR.model_copy(update={"num_epochs": 1}), few_digits, Checkpoints(tmp_path, FOUR, every_s=0.0)
    )
    [folder] = tmp_path.iterdir()
    assert names_in(folder) == sorted([TENSORS_NAME, MANIFEST_NAME])
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())["body"]
    assert manifest["config"] == FOUR.model_dump()
    assert [row["epoch"] for row in manifest["history"]] == [1]
    assert "model.head.weight" in load((folder / TENSORS_NAME).read_bytes())


def test_a_diverged_training_does_so_again_when_resumed(few_digits: TrainingData, tmp_path: Path) -> None:
    config = TrainingConfig(num_epochs=9, batch_size=32, learning_rate=1e12)
    said = []
    for _ in range(2):
        with pytest.raises(DivergedError) as caught:
            list(fit_resumably(config, few_digits, Checkpoints(tmp_path, config, every_s=0.0)))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_what_rank_0_sends_is_what_the_others_get(few_digits: TrainingData) -> None:
    state = TrainState.initial(FOUR, few_digits.statistics)
    state.history.append(EpochMetrics(1, 0.5, Score(0.1 + 0.2, 1, 2), Score(1e-300, 2, 2)))
    state.history.append(EpochMetrics(2, 0.5, Score(0.1 + 0.2, 1, 2), Score(1e-300, 2, 2), Score(0.3, 1, 2)))
    saved = SavedState.of(state)
    assert SavedState.from_bytes(saved.to_bytes()) == saved
