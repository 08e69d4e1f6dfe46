"""Several trainings on one GPU, each in a process of its own: each as good as alone, and what they get done."""

import multiprocessing
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

from mnist_ray.benchmarks.gpu.bench import ALLOWED_ACCURACY, Bench, Check, are_close, capturing, val_accuracy
from mnist_ray.config import TrainingConfig
from mnist_ray.training.kernels.selection import PLAIN
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.process import prepare_to_train

START_UP_S = 180.0  # until all trainings have taken their first epoch


@dataclass(frozen=True)
class Trained:
    """One training, its first epoch aside. Times are of the machine's monotonic clock, in seconds."""

    began: float
    ended: float
    num_images: int  # seen in that time
    accuracy: float
    steps: str


def check_together(bench: Bench) -> Iterator[Check]:
    """Train one, then several at a time; each must reach the accuracy of the one."""
    accuracies: list[float] = []
    for num_trainings in bench.sizes.num_together:
        trained = _side_by_side(bench, num_trainings)
        accuracies += [each.accuracy for each in trained]
        are_all = len(trained) == num_trainings and {each.steps for each in trained} == {"captured"}
        yield Check(
            "trainings at a time",
            {"trainings": num_trainings, "ended": len(trained), "allowed": ALLOWED_ACCURACY} | _figures(bench, trained),
            are_all and are_close(accuracies),
        )


def _figures(bench: Bench, trained: list[Trained]) -> dict[str, object]:
    wall_s = max((each.ended for each in trained), default=0) - min((each.began for each in trained), default=0)
    epochs = [(each.ended - each.began) / bench.sizes.num_epochs_together for each in trained]
    return {
        "val_accuracy": [each.accuracy for each in trained],
        "epoch_s": [round(each, 3) for each in epochs],
        "images_per_s": round(sum(each.num_images for each in trained) / (wall_s or 1)),
    }


def _side_by_side(bench: Bench, num_trainings: int) -> list[Trained]:
    """Return what the trainings that ended well found."""
    context = multiprocessing.get_context("fork")  # this process has computed nothing yet, nor has it met the GPU
    barrier, found = context.Barrier(num_trainings), context.SimpleQueue()
    processes = [context.Process(target=_train, args=(bench, barrier, found)) for _ in range(num_trainings)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    trained: list[Trained] = []
    while not found.empty():
        trained.append(found.get())
    return trained


def _train(bench: Bench, barrier: Barrier, found: "SimpleQueue[Trained]") -> None:
    """In a process of its own: take an epoch to warm up, wait for the others, and train."""
    try:
        prepare_to_train(1)
        data, num_epochs = bench.data(), 1 + bench.sizes.num_epochs_together
        config = TrainingConfig(num_epochs=num_epochs, batch_size=bench.sizes.batch_size)
        state = TrainState.initial(config, data.statistics, bench.worker, kernels=PLAIN)
        with capturing(bench.capture):
            epochs = fit(state, data, config, bench.worker)
            next(epochs)
            barrier.wait(START_UP_S)
            began = time.monotonic()
            num_images = sum(metrics.train.num_examples for metrics in epochs)
        found.put(Trained(began, time.monotonic(), num_images, val_accuracy(state), state.steps))
    except BaseException:
        barrier.abort()  # the others need not wait
        traceback.print_exc()
        raise SystemExit(1) from None
