"""A trained network answers people's pictures, and says what it does not answer."""

import os
from pathlib import Path

import numpy as np
import pytest

from mnist_ray import LocalBackend, RunDir, data, parse_spec, train_job
from mnist_ray.cli.main import main
from mnist_ray.errors import ImageFileError
from mnist_ray.pipeline.prediction import predict_images
from tests.data import redrawn
from tests.faults.made_run import NAME, RETRAINING, make_finished_run
from tests.real_mnist import REAL_RAW, needs_mnist

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
        patch.setattr(data, "load_training", lambda name, folder: some)
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
        str(answer) if isinstance(answer, ImageFileError) else int(answer.argmax())
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
    assert whose == f"Answers of the model {RETRAINING} of the run {storage / NAME}, trained on digits:"
