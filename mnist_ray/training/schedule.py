"""The learning rate over the steps of a training."""

import math

from mnist_ray.config import Schedule

INITIAL_DIVISOR, FINAL_DIVISOR = 25.0, 25e4  # of the one-cycle schedule, as in torch.optim.lr_scheduler.OneCycleLR


def rate_factor(schedule: Schedule, warmup: float, step: int, num_steps: int) -> float:
    """Return the share of the learning rate that step `step` takes; steps are counted from 1 to `num_steps`.

    constant: 1. cosine: a linear rise over the share `warmup` of the steps, then half a cosine towards 0, which the
    step after the last one would have (Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm
    Restarts", equation 5, without restarts). one_cycle: half a cosine up from 1/25 over the share `warmup`, then half a
    cosine down to 1/250000 (Smith and Topin 2018, "Super-Convergence", in the form of torch's OneCycleLR); Adam's
    decay rates are left alone.
    """
    if schedule == "constant":
        return 1.0
    taken = min(step, num_steps) - 1
    if schedule == "cosine":
        rising = warmup * num_steps
        if taken < rising:
            return min((taken + 1) / rising, 1.0)
        return _between(1.0, 0.0, (taken - rising) / (num_steps - rising))
    top = warmup * num_steps - 1
    if top > 0 and taken <= top:
        return _between(1 / INITIAL_DIVISOR, 1.0, taken / top)
    return _between(1.0, 1 / FINAL_DIVISOR, (taken - top) / (num_steps - 1 - top))


def _between(start: float, end: float, progress: float) -> float:
    """Go from `start` to `end` on half a cosine. progress: 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
