"""A job on a user's own images, from the folder to the report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_ray import LocalBackend, Run, RunDir, data, run_job, search_job
from mnist_ray.cli.main import main
from mnist_ray.errors import SpecError
from mnist_ray.pipeline.export import export_model
from mnist_ray.pipeline.prediction import evaluate_run
from mnist_ray.record.predictions import predictions
from tests.data.test_own_images import in_class_folders
from tests.small_job import essence, small_spec, use_few_images

NAMES = ("bar", "cross", "dot")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three classes with names, 40 pictures each of 20x30 pixels."""
    folder = tmp_path_factory.mktemp("shapes")
    random = np.random.default_rng(0)
    for number in range(120):
        name = NAMES[number % 3]
        pixels = random.integers(0, 60, (30, 20), dtype=np.uint8)
        row, column = random.integers(5, 15, 2)
        pixels[row, 2:18] = 255 if name != "dot" else pixels[row, 2:18]
        pixels[4:26, column] = 255 if name == "cross" else pixels[4:26, column]
        pixels[row : row + 3, column : column + 3] = 255
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "train" / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    keys = {
        "data": {"name": "images", "dir": str(shapes)},
        "retrain__num_epochs": 8,
        "recipe": {"learning_rate": 0.003},
    }
    return run_job(small_spec(tmp_path_factory.mktemp("runs"), **keys), LocalBackend())


def test_own_digits_train_like_the_embedded_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_images(monkeypatch)
    opened = data.open_data("digits", Path())
    for part, examples in {"train": opened.training, "test": opened.load_test()}.items():
        in_class_folders(tmp_path / "images", part, examples)
    embedded = run_job(small_spec(tmp_path / "embedded"), LocalBackend())
    own_data = {"name": "images", "dir": str(tmp_path / "images"), "num_validation": 30}
    own = run_job(small_spec(tmp_path / "own", data=own_data), LocalBackend())
    assert essence(own.path) == essence(embedded.path)


def test_head_follows_the_classes(finished: RunDir) -> None:
    state = finished.state
    assert state.started and state.started.class_names == NAMES
    assert state.started.data.num_training == 96 and state.started.num_validation == 9
    for training_id in state.tested.scores if state.tested else ():
        found = predictions(finished, training_id)
        assert found is not None and found.confusion().shape == (3, 3)
        again = evaluate_run(finished)[training_id]
        assert again.num_correct == found.score.num_correct and again.loss == pytest.approx(found.score.loss)


def test_changed_images_are_refused(shapes: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(shapes, images)
    spec = small_spec(tmp_path / "runs", data={"name": "images", "dir": str(images)})
    search_job(spec, LocalBackend())
    (images / "train" / "bar" / "0.png").unlink()
    Image.new("L", (20, 30)).save(images / "train" / "dot" / "2.png")
    with pytest.raises(SpecError, match=r"differ from those that .* began with \(0 files added, 1 gone, 1 changed\)"):
        run_job(spec, LocalBackend())


def test_folder_may_move(finished: RunDir, shapes: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(shapes, moved)
    assert evaluate_run(finished, moved) == evaluate_run(finished)


def test_prediction_names_the_class(finished: RunDir, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = next((shapes / "train" / "cross").glob("*.png"))
    assert main(["predict", str(picture), "--run", str(finished.path)]) == 0
    answer = capsys.readouterr()
    assert any(name in answer.out for name in NAMES)
    assert "--data-dir" not in answer.err  # nothing is missing


def test_report_names_the_classes(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(finished.path)]) == 0
    page = finished.paths.report.read_text()
    assert all(name in page for name in NAMES)
    card = finished.paths.model_folder.joinpath("README.md").read_text()
    num_parameters = sum(each.numel() for each in finished.model().parameters())
    assert "bar, cross, dot." in card and f"{num_parameters:,} parameters" in card and "digit" not in card


def test_exported_model_names_the_classes(finished: RunDir, tmp_path: Path) -> None:
    exported = export_model(finished, "torch", tmp_path / "shapes.pt2")
    assert json.loads(exported.metadata["class_names"]) == list(NAMES)
    assert "9 validation images" in exported.check and "24 test images" in exported.check
