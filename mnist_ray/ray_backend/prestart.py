"""Processes that are started, and import what they need, before a stage asks for them.

A process imports for four seconds before it trains. One that is started early waits for its actor. Only on a cluster
that this process started: the environment of processes of a joined cluster is not known beforehand.
"""

import time

from mnist_ray.ray_backend.compat import (
    num_started_workers,
    prestart_workers,
    variables_of_controllers,
    variables_of_trials,
)
from mnist_ray.ray_backend.preload import IN_RANKS

VARIABLES_OF_RANKS = {IN_RANKS: "1"}  # beside those that Ray Train sets
LONGEST_WAIT_S = 10.0


class Prestart:
    """The processes that were started ahead for the next stage."""

    def __init__(self) -> None:
        self._num_awaited = 0

    def trials(self, num_trials: int) -> None:
        """Start the processes of as many trials, and that of their mailbox."""
        num_before = num_started_workers()
        num_new = prestart_workers(num_trials, variables_of_trials()) + prestart_workers(1, {})
        self._num_awaited = num_before + num_new

    def groups(self, num_groups: int, num_workers: int) -> None:
        """Start the processes of groups of `num_workers` each: ranks, two of Ray Train's own, and a mailbox.

        Ray Train has one more process for all groups.
        """
        of_controllers = variables_of_controllers()
        num_before = num_started_workers()
        num_new = prestart_workers(2 * num_groups + 1, of_controllers) + prestart_workers(num_groups, {})
        num_new += prestart_workers(num_groups * num_workers, of_controllers | VARIABLES_OF_RANKS, for_children=True)
        self._num_awaited = num_before + num_new

    def wait(self) -> None:
        """Wait until the processes have joined the cluster: Ray would start more beside those that it is starting."""
        give_up_at = time.monotonic() + LONGEST_WAIT_S
        while num_started_workers() < self._num_awaited and time.monotonic() < give_up_at:
            time.sleep(0.05)
