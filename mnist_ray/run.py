"""A run as Python programs and notebooks use it: tables, models, predictions, figures and the verdict."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mnist_ray.errors import SpecError
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import StoragePath, storage_path

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mnist_ray.report.analysis.verdict import Verdict
    from mnist_ray.training.model import MnistCNN

Pictures = Sequence[Path | str] | Path | str | npt.NDArray[np.uint8]


class Run(RunDir):
    """A run's folder with what people ask of it. `run_job` returns one; `Run("results/quickstart")` opens one.

    Everything is read from the record when it is asked for. Raises CorruptFileError and OSError.
    """

    def __init__(self, folder: StoragePath | str) -> None:
        """folder: of a run, or its address in a store. Raises SpecError where there is none."""
        super().__init__(storage_path(folder) if isinstance(folder, str) else folder)
        if not self.exists:
            raise SpecError(
                f"{folder} is no run's folder: name one that 'mnist-ray run' wrote, such as results/quickstart"
            )

    @property
    def table(self) -> "pd.DataFrame":
        """One row a training, as in results.csv: hyperparameters, status, epochs_done, val_*, test_*."""
        from mnist_ray.record.tables import results_table

        return results_table(self.state)

    @property
    def history(self) -> "pd.DataFrame":
        """One row an epoch of each training: id, epoch, elapsed_s, train_*, val_*."""
        from mnist_ray.record.tables import history_table

        return history_table(self.state)

    @property
    def verdict(self) -> "Verdict":
        """Whether the selected configuration is better than the baseline; `.sentence` says it in words."""
        from mnist_ray.report.analysis.verdict import verdict

        return verdict(self)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the network's outputs. Empty before the data were read."""
        started = self.state.started
        return started.class_names if started else ()

    @property
    def figures(self) -> "dict[str, go.Figure]":
        """The report's figures by title, as Plotly draws them. Raises SpecError for a run that has not begun."""
        from mnist_ray.report import illustrations
        from mnist_ray.report.review import Review

        review = Review.of(self)
        drawn = [
            *illustrations.curves(review),
            *illustrations.search_illustrations(review),
            *illustrations.error_illustrations(review),
            *illustrations.time_illustrations(review),
        ]
        return {each.title: each.drawing for each in drawn}

    def model(self) -> "MnistCNN":
        """The selected configuration's network of the first seed, a torch.nn.Module in evaluation mode.

        It takes (B, 1, 28, 28) uint8 and returns logits, (B, classes). Raises SpecError before one is trained.
        """
        from mnist_ray.pipeline.prediction import selected_model

        return selected_model(self)

    def predict(self, pictures: Pictures) -> "pd.DataFrame":
        """Return the probability of each class, a row a picture and a column a class.

        pictures: image files, brought into the network's form as `mnist-ray predict` does, or arrays that are in it:
        (28, 28) or (N, 28, 28) uint8. `.idxmax(axis=1)` gives the classes. Raises SpecError before a model is trained,
        ImageFileError for a file that is no picture.
        """
        import pandas as pd
        import torch

        from mnist_ray.pipeline.prediction import predict_images
        from mnist_ray.training.evaluation import predict

        if isinstance(pictures, np.ndarray):
            if pictures.dtype != np.uint8 or pictures.ndim not in (2, 3) or pictures.shape[-2:] != (28, 28):
                raise SpecError(
                    f"pictures: {pictures.dtype} of shape {pictures.shape}: give (N, 28, 28) uint8, or image files"
                )
            images = torch.from_numpy(np.ascontiguousarray(pictures).reshape(-1, 1, 28, 28))
            probabilities = torch.softmax(predict(self.model(), images), dim=1).numpy()
            return pd.DataFrame(probabilities, columns=list(self.classes))
        paths = [Path(each) for each in ([pictures] if isinstance(pictures, Path | str) else pictures)]
        answers = predict_images(self, paths)
        rows = []
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            rows.append(answer.probabilities)
        return pd.DataFrame(rows, columns=list(self.classes), index=[path.name for path in paths])

    def _repr_html_(self) -> str:
        """The run in a few lines, for notebooks."""
        from mnist_ray.report.review import Review

        if self.state.started is None:
            return f"<p><b>{escape(self.path.name)}</b>: not begun</p>"
        review = Review.of(self)
        lines = "".join(f"<li>{escape(line)}</li>" for line in review.summary())
        report = f" Report: <code>{escape(str(self.paths.report))}</code>." if self.paths.report.exists() else ""
        return f"<p><b>{escape(review.spec.name)}</b>, {escape(review.spec.data.name)}.{report}</p><ul>{lines}</ul>"
