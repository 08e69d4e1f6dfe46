"""A run as Python programs and notebooks use it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ray import LocalBackend, Run, data, run_job
from mnist_ray.errors import ImageFileError, SpecError
from tests.small_job import small_spec


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_job(small_spec(tmp_path_factory.mktemp("runs")), LocalBackend())


def test_tables_have_every_training(run: Run) -> None:
    assert set(run.history["id"]) == set(run.table["id"])
    assert run.history.groupby("id").size().sum() == run.table["epochs_done"].sum()


def test_opened_run_is_the_same(run: Run) -> None:
    again = Run(str(run.path))
    assert again.table.equals(run.table) and again.verdict == run.verdict
    with pytest.raises(SpecError, match="nowhere is no run's folder"):
        Run(run.path.parent / "nowhere")


def test_predictions_are_the_networks(run: Run, tmp_path: Path) -> None:
    images = data.load_test("digits", tmp_path).images[:5]
    with torch.no_grad():
        expected = torch.softmax(run.model()(torch.from_numpy(images)), dim=1).numpy()
    answers = run.predict(images[:, 0])
    assert list(answers.columns) == list("0123456789")
    np.testing.assert_allclose(answers.to_numpy(), expected, rtol=1e-6)
    assert run.predict(images[0, 0]).shape == (1, 10)
    Image.fromarray(images[0, 0]).save(tmp_path / "one.png")
    np.testing.assert_allclose(run.predict(tmp_path / "one.png").to_numpy()[0], expected[0], rtol=1e-6)


def test_unfit_pictures_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"pictures: float64 of shape \(28, 28\): give \(N, 28, 28\)"):
        run.predict(np.zeros((28, 28)))  # type: ignore[arg-type]
    with pytest.raises(ImageFileError, match=r"absent.png"):
        run.predict([tmp_path / "absent.png"])


def test_notebooks_show_the_verdict(run: Run) -> None:
    shown = run._repr_html_()
    assert "verdict: " in shown and "digits" in shown and len(shown) < 4000
    assert {"train_loss", "training loss"} & {title.lower() for title in run.figures} or run.figures
