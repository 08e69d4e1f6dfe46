"""A training as in "Get Started with Distributed Training using PyTorch" (Ray 2.60)."""

import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.utils.data import DataLoader

from mnist_ray.ray_backend.documented.figures import Epoch, Figures
from mnist_ray.ray_backend.documented.mnist import images_of, network, train_epoch
from mnist_ray.ray_backend.documented.started import ray_started


def train_func(config: dict[str, Any]) -> None:
    """Train in each worker, and report each epoch with a checkpoint."""
    torch.set_num_threads(1)
    num_workers = ray.train.get_context().get_world_size()
    model = prepare_model(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    loader = prepare_data_loader(
        DataLoader(
            images_of(config["folder"], train=True), batch_size=config["global_batch_size"] // num_workers, shuffle=True
        )
    )
    for epoch in range(config["num_epochs"]):
        if num_workers > 1:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # a DistributedSampler
        began = time.perf_counter()
        num_steps, num_images = train_epoch(model, optimizer, loader)
        metrics = {
            "elapsed_s": time.perf_counter() - began,
            "num_steps": num_steps,
            "num_images": num_workers * num_images,  # the sampler gives all workers equally many
        }
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder, "model.pt"))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def train(
    data_folder: Path, ray_folder: Path, num_workers: int, num_epochs: int, batch_size: int, num_cpus: int
) -> Figures:
    """Start Ray, train, and end Ray. data_folder: torchvision's MNIST. Raises ray.train.TrainingFailedError.

    ray_folder: for all files of Ray. batch_size: the global one.
    """
    with ray_started(num_cpus, ray_folder / "ray"):
        began = time.perf_counter()
        trainer = TorchTrainer(
            train_func,
            train_loop_config={
                "lr": 0.001,
                "global_batch_size": batch_size,
                "num_epochs": num_epochs,
                "folder": str(data_folder),
            },
            scaling_config=ScalingConfig(num_workers=num_workers),
            run_config=RunConfig(storage_path=str(ray_folder / "results")),
        )
        result = trainer.fit()
        work_s = time.perf_counter() - began
    history = result.metrics_dataframe
    assert history is not None, "each epoch is reported with a checkpoint"
    rows = history.to_dict("records")
    return Figures(
        work_s, [Epoch(float(row["elapsed_s"]), int(row["num_steps"]), int(row["num_images"])) for row in rows]
    )
