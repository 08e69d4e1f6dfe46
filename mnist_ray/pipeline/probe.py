"""A quick measurement of this machine's training speed, for a plan before the first run."""

import numpy as np
import torch

from mnist_ray.config import JobSpec
from mnist_ray.data import PixelStatistics
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import Examples, TrainingData
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.process import prepare_to_train

NUM_IMAGES = 2048  # an epoch of 16 steps of 128, a third of a second on one core


def seconds_per_image(spec: JobSpec) -> float | None:
    """Train two short epochs on made-up images, as a trial of the spec; return the second one's seconds per image.

    None where trials use GPUs and torch finds none here.
    """
    if spec.search.gpus_per_trial and not torch.cuda.is_available():
        return None
    worker = Worker(device=torch.device("cuda" if spec.search.gpus_per_trial else "cpu"))
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (NUM_IMAGES, 1, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(random.integers(0, 10, NUM_IMAGES))
    data = TrainingData(Examples(images.to(worker.device), labels.to(worker.device)), None, PixelStatistics(0.5, 0.3))
    config = spec.training_config(spec.starting_point, num_epochs=2, seed=0)
    num_threads = torch.get_num_threads()
    try:
        prepare_to_train(spec.search.cpus_per_trial)
        *_, last = fit(TrainState.initial(config, data.statistics, worker), data, config, worker)
    finally:
        torch.set_num_threads(num_threads)
    return last.elapsed_s / NUM_IMAGES
