"""How do tuned models and the recipe's stand changed images? python -m experiments.robustness RUN ... --data-dir FOLDER

Scores the tested models of finished runs on MNIST's test images that are shifted, turned, covered with noise or faded.
It chooses nothing: the runs' test split was opened before. Writes docs/results/robustness.csv: one row for each model,
change and strength.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mnist_ray import data
from mnist_ray.record.models import retrained_models
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import storage_path
from mnist_ray.training.checkpoint import model_from_bytes
from mnist_ray.training.evaluation import logits_of, score_of

TABLE = Path("docs/results/robustness.csv")


def shifted(images: Tensor, pixels: float) -> Tensor:
    """Shift each image to the right and downwards; what comes in is empty."""
    return _moved(images, angle=0.0, pixels=pixels)


def turned(images: Tensor, degrees: float) -> Tensor:
    """Turn each image about its centre."""
    return _moved(images, angle=degrees, pixels=0.0)


def noisy(images: Tensor, deviation: float) -> Tensor:
    """Add normal noise, the same for every model; deviation: of 255."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images + deviation * noise


def faded(images: Tensor, contrast: float) -> Tensor:
    """Multiply each pixel."""
    return images * contrast


CHANGES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "shift, pixels": (shifted, (0, 1, 2, 3, 4)),
    "rotation, degrees": (turned, (-30, -20, -10, 10, 20, 30)),
    "noise, of 255": (noisy, (20, 40, 60, 80)),
    "contrast": (faded, (0.8, 0.6, 0.4, 0.2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path, default=data.default_data_dir(), help="where MNIST lies")
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    test = data.load_test("mnist", arguments.data_dir)
    images = torch.tensor(test.images, dtype=torch.float32)
    rows = []
    for change, (apply, strengths) in CHANGES.items():
        for strength in strengths:
            pixels = apply(images, strength).clamp(0, 255).round().to(torch.uint8).numpy()
            changed = data.LabelledImages(pixels, test.labels)
            for run_name, role, seed, content in _models(arguments.runs):
                score = score_of(logits_of(model_from_bytes(content), changed), changed)
                rows.append(
                    {
                        "run": run_name,
                        "role": role,
                        "seed": seed,
                        "change": change,
                        "strength": strength,
                        **score.columns("test"),
                    }
                )
    arguments.table.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(arguments.table, index=False, lineterminator="\n")
    print(robustness_table(table).to_markdown(index=False))


def robustness_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean accuracy over seeds in percent, by change and strength, a column for each run's role."""
    rows = rows.assign(model=rows["run"] + ": " + rows["role"])
    means = rows.pivot_table(index=["change", "strength"], columns="model", values="test_accuracy", sort=False)
    return (100 * means).round(2).reset_index()


def _models(folders: list[Path]) -> list[tuple[str, str, int, bytes]]:
    found: list[tuple[str, str, int, bytes]] = []
    for folder in folders:
        run = RunDir(storage_path(str(folder)))
        for model in retrained_models(run.state):
            if model.training.ended is not None and model.training.ended.model is not None:
                content = run.blob(model.training.ended.model)
                found.append((folder.name, model.role, model.training.config.seed, content))
    return found


def _moved(images: Tensor, angle: float, pixels: float) -> Tensor:
    """images: (N, 1, H, W) float, 0 to 255; bilinear, zeros from outside."""
    radians = np.deg2rad(angle)
    shift = -2 * pixels / images.shape[-1]
    matrix = torch.tensor(
        [[np.cos(radians), np.sin(radians), shift], [-np.sin(radians), np.cos(radians), shift]], dtype=torch.float32
    )
    grid = functional.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


if __name__ == "__main__":
    main()
