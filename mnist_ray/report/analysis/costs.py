"""The cost of a run: trainings, epochs, wall time and processor time of each of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from mnist_ray.record.state import RunState, Training
from mnist_ray.record.tables import STAGES
from mnist_ray.record.timing import stage_times

TUNING = ("search", "final")  # the stages that an untuned training does without


@dataclass(frozen=True)
class Cost:
    """What one step took. Processor time is that of the trainings' epochs: start-up and tests are not in it."""

    step: str
    wall_s: float | None  # None where the step has not ended
    num_trainings: int = 0
    num_epochs: int = 0
    cpu_s: float = 0.0  # of trainings on the CPU: seconds times workers times threads of each
    gpu_s: float = 0.0  # of trainings on GPUs: seconds times workers, or the share of a GPU that a trial has


def costs(state: RunState) -> list[Cost]:
    """Return the cost of each stage that has begun, the loading of the data first."""
    wall_s = {each.stage: each.wall_s for each in stage_times(state)}
    found = []
    if "data" in wall_s:
        found.append(Cost("data", wall_s["data"]))
    for stage in STAGES:
        here = [each for each in state.trainings(stage) if not (each.ended and each.ended.taken_from)]
        if here:
            found.append(_cost(stage, wall_s.get(stage), here, state))
    if "test" in wall_s:
        found.append(Cost("test", wall_s["test"]))
    return found


def tuning_cost(found: Sequence[Cost]) -> Cost | None:
    """Return the cost of search and final round together; None without either."""
    parts = [each for each in found if each.step in TUNING]
    if not parts:
        return None
    walls = [each.wall_s for each in parts]
    return Cost(
        "tuning",
        sum(each for each in walls if each is not None) if None not in walls else None,
        sum(each.num_trainings for each in parts),
        sum(each.num_epochs for each in parts),
        sum(each.cpu_s for each in parts),
        sum(each.gpu_s for each in parts),
    )


def _cost(step: str, wall_s: float | None, trainings: Sequence[Training], state: RunState) -> Cost:
    assert state.started is not None
    share = state.started.spec.search.gpus_per_trial if step in TUNING else 1.0
    cpu_s = gpu_s = 0.0
    for training in trainings:
        ended = training.ended
        if ended and ended.device.startswith("cuda"):
            gpu_s += training.elapsed_s * ended.workers * (share or 1.0)
        elif ended:
            cpu_s += training.elapsed_s * ended.workers * ended.threads
    num_epochs = sum(training.epochs_done for training in trainings)
    return Cost(step, wall_s, len(trainings), num_epochs, cpu_s, gpu_s)
