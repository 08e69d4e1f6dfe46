"""The search and the final round under Ray Tune, which starts the trials' processes and starts them again."""

import uuid
from collections.abc import Callable
from pathlib import Path

from ray import tune

from mnist_ray.config import Search
from mnist_ray.pipeline.search import TrialController
from mnist_ray.ray_backend.compat import keep_credentials_from_trials, lost_processes_as_failed_trials
from mnist_ray.ray_backend.heartbeat import TrialMonitor
from mnist_ray.ray_backend.shared_data import SharedImages
from mnist_ray.ray_backend.tune.adapters import (
    ControllerCallback,
    ControllerScheduler,
    ControllerSearcher,
    SilentReporter,
    task_of,
)
from mnist_ray.ray_backend.tune.trial import run_task


def run_trials(
    controller: TrialController,
    images: SharedImages,
    settings: Search,
    max_failures: int,
    ray_state: Path,
    hang_limit_s: float,
    when_nearly_over: Callable[[], None],
) -> None:
    """Run the controller's trials until it has none left, or its time is up.

    A trial that makes no progress for `hang_limit_s` is ended as if its process had died. A process is started again
    at most `max_failures` times a trial. ray_state: the folder for Tune's files. when_nearly_over: called once, when
    every slot gets at most one more trial.

    Raises what `controller.poll` raises, and KeyboardInterrupt; trials in flight stay open on the record then.
    """
    monitor = TrialMonitor(hang_limit_s)
    callback = ControllerCallback(controller, settings, monitor, when_nearly_over)
    trainable = tune.with_parameters(run_task, images=images, settings=settings, mailbox=monitor.mailbox)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=ControllerSearcher(controller),
            scheduler=ControllerScheduler(controller),
            num_samples=-1,  # as many as the controller has
            max_concurrent_trials=controller.num_concurrent,
            reuse_actors=True,
            time_budget_s=controller.seconds_left,
            trial_dirname_creator=lambda trial: task_of(trial).id,
        ),
        run_config=tune.RunConfig(
            name=f"{controller.source.stage}-{uuid.uuid4().hex[:8]}",
            storage_path=str(ray_state),
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=max_failures),
            verbose=0,
            progress_reporter=SilentReporter(),
        ),
    )
    keep_credentials_from_trials()
    try:
        with lost_processes_as_failed_trials():
            tuner.fit()
    finally:
        monitor.close()
    controller.stop_what_is_left(callback.execution)  # Tune reports nothing of trials that it stops as a whole
    controller.poll()
