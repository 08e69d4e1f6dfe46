"""Whom to kill and when: drawn by a seeded generator, spread over an undisturbed run."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mnist_ray.record.rundir import RunDir
from tools.chaos.killing import Aim, Story, events_of
from tools.chaos.processes import Role
from tools.chaos.session import Stage
from tools.chaos.verdict import progress_times

# How often each kind of process is meant, by stage.
SHARES: dict[Stage, dict[Role, float]] = {
    "start": {"driver": 1.0},
    "search": {"driver": 0.45, "trial": 0.45, "other": 0.10},
    "retrain": {"driver": 0.45, "rank": 0.45, "other": 0.10},
    "test": {"driver": 0.85, "other": 0.15},
}


@dataclass(frozen=True)
class Pace:
    """How an undisturbed run goes."""

    start_s: float  # from the command to the search's first sign
    search_epochs: int
    retrain_epochs: int
    warm_up_s: float  # from the search's first sign to its first epoch
    untested_s: float  # from the test's first sign to its scores on record
    test_s: float  # from the test's first sign to the driver's end

    @classmethod
    def of(cls, story: Story, run: RunDir) -> "Pace":
        times = progress_times(events_of(run))
        search, retrain = (
            [row for each in run.state.trainings(stage) for row in each.history] for stage in ("search", "retrain")
        )
        signs = story.signs
        return cls(
            start_s=signs["search"] - signs["start"],
            search_epochs=len(search),
            retrain_epochs=len(retrain),
            warm_up_s=max(times[1] - signs["search"], 0.5),
            untested_s=max(times[-1] - signs["test"], 0.1),
            test_s=story.ended - signs["test"],
        )

    def after(self, story: Story) -> "Pace":
        """Return this pace with the start and the end as long as they were in a later run.

        A machine that has become faster would be through with them before the kills that were drawn for it.
        """
        end_s = story.ended - story.signs["test"] if "test" in story.signs else self.test_s
        return replace(self, start_s=max(story.starts_s, default=self.start_s), test_s=end_s)


def draw_aims(generator: random.Random, pace: Pace, quota: Mapping[Stage, int]) -> list[Aim]:
    """So many aims for each stage, in an order in which one run can be hit by all of them."""
    aims = [
        *_at_work(generator, "search", pace.search_epochs, pace.warm_up_s, quota["search"]),
        *_at_work(generator, "retrain", pace.retrain_epochs, pace.warm_up_s, quota["retrain"]),
        *_at_test(generator, pace, quota["test"]),
    ]
    for _ in range(quota["start"]):
        places = [0, *(place for place, aim in enumerate(aims, start=1) if aim.role == "driver")]
        aim = Aim("start", _role(generator, "start"), delay_s=generator.uniform(0, pace.start_s))
        aims.insert(generator.choice(places), aim)
    return aims


def _at_work(generator: random.Random, stage: Stage, num_epochs: int, warm_up_s: float, count: int) -> list[Aim]:
    """Within the stage's epochs, in order; some of them so late that they meet a group that starts again."""
    epochs = sorted(generator.randrange(num_epochs) for _ in range(count))
    return [Aim(stage, _role(generator, stage), some, _delay(generator, warm_up_s)) for some in epochs]


def _delay(generator: random.Random, warm_up_s: float) -> float:
    return generator.uniform(0, warm_up_s if generator.random() < 1 / 3 else 1.0)


def _at_test(generator: random.Random, pace: Pace, count: int) -> list[Aim]:
    """All but the last before the scores are on record: after that one more start is the end."""
    limits = [pace.untested_s] * (count - 1) + [pace.test_s] * min(count, 1)
    return [Aim("test", _role(generator, "test"), delay_s=generator.uniform(0, limit)) for limit in limits]


def _role(generator: random.Random, stage: Stage) -> Role:
    roles = SHARES[stage]
    return generator.choices(list(roles), list(roles.values()))[0]
