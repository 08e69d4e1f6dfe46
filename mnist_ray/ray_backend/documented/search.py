"""A search as in "Getting Started with Ray Tune" and "Running Tune experiments with Optuna" (Ray 2.60)."""

import time
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from torch.utils.data import DataLoader

from mnist_ray.ray_backend.documented.figures import Epoch, Figures
from mnist_ray.ray_backend.documented.mnist import accuracy, images_of, network, train_epoch
from mnist_ray.ray_backend.documented.started import ray_started


def objective(config: dict[str, Any]) -> None:
    """Train one trial and report each epoch."""
    torch.set_num_threads(1)
    train_loader = DataLoader(images_of(config["folder"], train=True), batch_size=config["batch_size"], shuffle=True)
    validation_loader = DataLoader(images_of(config["folder"], train=False), batch_size=config["batch_size"])
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    for _ in range(config["num_epochs"]):
        began = time.perf_counter()
        num_steps, num_images = train_epoch(model, optimizer, train_loader)
        mean_accuracy = accuracy(model, validation_loader)
        elapsed_s = time.perf_counter() - began
        tune.report(
            {
                "mean_accuracy": mean_accuracy,
                "elapsed_s": elapsed_s,
                "num_steps": num_steps,
                "num_images": num_images,
            }
        )


def search(
    data_folder: Path, ray_folder: Path, num_trials: int, num_epochs: int, batch_size: int, num_cpus: int
) -> Figures:
    """Start Ray, search with Optuna, and end Ray. data_folder: torchvision's MNIST. Raises RuntimeError.

    ray_folder: for all files of Ray.
    """
    with ray_started(num_cpus, ray_folder / "ray"):
        began = time.perf_counter()
        tuner = tune.Tuner(
            objective,
            tune_config=tune.TuneConfig(
                metric="mean_accuracy", mode="max", search_alg=OptunaSearch(), num_samples=num_trials
            ),
            run_config=tune.RunConfig(storage_path=str(ray_folder / "results")),
            param_space={
                "lr": tune.loguniform(1e-4, 3e-2),
                "batch_size": batch_size,
                "num_epochs": num_epochs,
                "folder": str(data_folder),
            },
        )
        results = tuner.fit()
        work_s = time.perf_counter() - began
    if results.errors:
        raise RuntimeError(f"{results.num_errors} trials of the documented search failed, one with {results.errors[0]}")
    histories = [results[number].metrics_dataframe for number in range(len(results))]
    rows = [row for history in histories if history is not None for row in history.to_dict("records")]
    epochs = [Epoch(float(row["elapsed_s"]), int(row["num_steps"]), int(row["num_images"])) for row in rows]
    return Figures(work_s, epochs)
