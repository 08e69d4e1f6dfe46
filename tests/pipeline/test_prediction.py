"""A trained network answers people's pictures, and says what it does not answer."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mnist_ray import LocalBackend, RunDir, data, parse_spec, train_job
from mnist_ray.cli.main import main
from mnist_ray.data.images import read_image
from mnist_ray.errors import ImageFileError
from mnist_ray.pipeline.prediction import SURE_FROM, Prediction, predict_images
from mnist_ray.record.rundir import run_to_ask
from tests.data import redrawn
from tests.faults.made_run import NAME, RETRAINING, make_finished_run
from tests.real_mnist import REAL_RAW, needs_mnist
from tests.report.made_up import made_up_spec, make_up

NUM_DIGITS = 40
RIGHT = 36  # at least, of each form
REFUSED = 38  # at least, of pictures of nothing and of several digits


NUM_IMAGES = 15_000  # of MNIST's 60,000: enough for 97 % after three epochs, and a quarter of the time

# --- the forms, with a trained network


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    spec = parse_spec(
        {
            "storage": str(tmp_path_factory.mktemp("trained")),
            "data": {"name": "mnist", "dir": str(REAL_RAW.parents[1])},
            "retrain": {"num_epochs": 3},
        }
    )
    some = data.load_training("mnist", REAL_RAW.parents[1]).take(np.arange(NUM_IMAGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.opened, "load_training", lambda name, folder: some)
        return train_job(spec, LocalBackend())


@pytest.fixture(scope="session")
def digits() -> data.LabelledImages:
    """Take the first four of each class, so that 40 pictures show all ten digits."""
    test = data.load_test("mnist", REAL_RAW.parents[1])
    return test.take(np.concatenate([np.flatnonzero(test.labels == digit)[:4] for digit in range(10)]))


@needs_mnist
@pytest.mark.slow
@pytest.mark.timeout(900)  # the first of them trains
@pytest.mark.parametrize("form", redrawn.FORMS)
def test_redrawn_digits_are_recognised(trained: RunDir, digits: data.LabelledImages, tmp_path: Path, form: str) -> None:
    paths = [tmp_path / str(number) for number in range(NUM_DIGITS)]
    for number, path in enumerate(paths):
        redrawn.FORMS[form](digits.images[number, 0], np.random.default_rng(number), path)
    answers = [
        str(answer) if isinstance(answer, ImageFileError) else answer.ranking[0]
        for answer in predict_images(trained, paths)
    ]
    pairs = list(zip(answers, digits.labels.tolist(), strict=True))
    assert sum(answer == label for answer, label in pairs) >= RIGHT, [pair for pair in pairs if pair[0] != pair[1]]


@needs_mnist
@pytest.mark.slow
@pytest.mark.timeout(900)  # the first of them trains
@pytest.mark.parametrize("what", ["the image is empty", "shows more than one thing"])
def test_other_drawings_are_refused(trained: RunDir, digits: data.LabelledImages, tmp_path: Path, what: str) -> None:
    paths = [tmp_path / str(number) for number in range(NUM_DIGITS)]
    for number, path in enumerate(paths):
        random = np.random.default_rng(number)
        chosen = [digits.images[index, 0] for index in random.integers(NUM_DIGITS, size=2 + number % 2)]
        if what == "the image is empty":
            redrawn.blank(random, path)
        else:
            redrawn.several(chosen, random, path)
    assert sum(what in str(answer) for answer in predict_images(trained, paths)) >= REFUSED


# --- the command


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    make_finished_run(folder)
    return folder


@pytest.mark.parametrize("run", [[], ["--run", NAME]])
def test_other_images_are_still_answered(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: list[str]
) -> None:
    good = [tmp_path / "first.png", tmp_path / "last.png"]
    for path in good:
        redrawn.in_28_pixels(data.load_training("digits", tmp_path).images[0, 0], np.random.default_rng(0), path)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "page.png").write_text("<html>")
    paths = [good[0], tmp_path / "pipe.png", tmp_path / "page.png", tmp_path / "absent.png", good[1]]
    assert main(["predict", *map(str, paths), *run, "--storage", str(storage)]) == 2
    output = capsys.readouterr()
    assert [line.split(":")[0] for line in output.out.splitlines()] == [str(path) for path in good]
    whose, *refused = output.err.splitlines()
    assert [line.split(": ")[1] for line in refused] == [str(path) for path in paths[1:4]]
    assert whose.startswith(f"Answers of the model {RETRAINING} of the run {storage / NAME}, trained on digits, ")
    assert "of its 360 test images" in whose


def draw_seven(path: Path) -> None:
    """Draw a seven with a thick pen, as in a drawing program."""
    picture = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(picture).line([(80, 60), (200, 60), (130, 230)], fill=0, width=24, joint="curve")
    picture.save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Return the paths of a drawn seven, of what is no picture, and of a digit of the training images."""
    paths = [str(tmp_path / name) for name in ("seven.png", "page.png", "digit.png")]
    draw_seven(Path(paths[0]))
    Path(paths[1]).write_text("<html>")
    Image.fromarray(data.load_training("digits", tmp_path).images[0, 0]).save(paths[2])
    return paths


def test_one_json_document_has_everything(
    storage: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *pictures, "--storage", str(storage), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    model, (seven, page, digit) = document["model"], document["images"]
    assert (model["run"], model["training"], model["data_set"]) == (str(storage / NAME), RETRAINING, "digits")
    assert 0 < model["test_accuracy"] < 1
    assert [image["path"] for image in document["images"]] == pictures
    assert "page.png" in page["error"]
    for image in (seven, digit):
        probabilities = np.array(image["probabilities"])
        assert probabilities.sum() == pytest.approx(1)
        assert image["class"] == model["class_names"][probabilities.argmax()]
    assert (seven["is_like_training_images"], digit["is_like_training_images"]) == (False, True)
    assert seven["is_unsure"]


def test_unfamiliar_picture_is_unsure(storage: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", pictures[0], "--storage", str(storage)]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"{pictures[0]}: unsure, unlike the training images (")
    assert "mnist-ray run mnist" in output.err


def test_show_draws_what_the_network_saw(
    storage: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", pictures[0], "--storage", str(storage), "--show"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:-1]
    pixels = np.array([[divmod(" ▄▀█".index(letter), 2) for letter in line[1:-1]] for line in lines])
    seen = pixels.transpose(0, 2, 1).reshape(28, 28).astype(bool)
    (image,) = read_image(Path(pictures[0]))
    assert seen.any()
    assert image[seen].min() > image[~seen].max()


def test_sureness_follows_the_probability() -> None:
    for top in np.linspace(0.2, 1, 81):
        probabilities = np.full(10, (1 - top) / 9, np.float32)
        probabilities[7] = top
        image = np.zeros((28, 28), np.uint8)
        for is_like in (True, None):
            answer = Prediction(image, probabilities, is_like)
            assert answer.ranking[0] == 7
            assert answer.is_unsure == (probabilities[7] < SURE_FROM)
        assert Prediction(image, probabilities, is_like_training_images=False).is_unsure


def test_mnist_is_asked_first_and_digits_last(tmp_path: Path) -> None:
    runs = {}
    for name in ("mnist", "qmnist", "kmnist", "digits"):
        spec = made_up_spec(tmp_path / name, name=name, data={"name": name}, retrain={"seeds": [0], "num_epochs": 1})
        runs[name] = make_up(spec, with_search=False).path
    for number, names in enumerate(itertools.combinations(runs, 3)):
        folder = tmp_path / f"storage-{number}"
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(runs[name])
        assert run_to_ask(folder, pytest.fail).path.name == names[0]
