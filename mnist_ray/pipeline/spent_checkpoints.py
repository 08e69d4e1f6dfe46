"""Removing checkpoints that nothing goes on from: in threads of their own, because a store takes its time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from mnist_ray.record.event_log import Numbered
from mnist_ray.record.events import TrainingEnded
from mnist_ray.record.writer import RunWriter
from mnist_ray.storage.files import remove_tree

NUM_THREADS = 4  # 256 slots with epochs of a second end some 25 trials a second, each with a request or two


@contextmanager
def spent_checkpoints_removed(writer: RunWriter) -> Iterator[None]:
    """Remove a training's checkpoints once its end is published, while the block lasts.

    What a kill leaves is removed by the run's next owner.
    """
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="spent-checkpoints") as threads:

        def remove(published: Numbered) -> None:
            if isinstance(published.event, TrainingEnded):
                threads.submit(remove_tree, writer.run.paths.checkpoints(published.event.id))

        writer.subscribe(remove)
        yield
