"""The loop: an undisturbed run, then runs under fire until every stage has had its kills, each of them judged."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mnist_ray.errors import CorruptFileError
from mnist_ray.record.rundir import RunDir
from tools.chaos.aims import Pace, draw_aims
from tools.chaos.killing import Aim, Killer, Story, events_of
from tools.chaos.session import STAGES, Job, Stage
from tools.chaos.verdict import (
    Outcome,
    Verdict,
    judge,
    num_shared_retrainings,
    outcome_of,
    seconds_lost,
)

KILLS_PER_STAGE_AND_RUN = 2

# Short, and real in every part. No kill of a worker uses up `max_failures`. The recipe is a poor one, so that the
# search finds a better one and there are two retrainings.
SPEC: dict[str, Any] = {
    "name": "chaos",
    "seed": 1,
    "data": {"name": "digits", "num_validation": 180},
    "recipe": {"learning_rate": 0.0003, "batch_size": 256},
    "search": {
        "num_trials": 8,
        "num_epochs": 3,
        "early_stopping": {"grace_epochs": 1, "reduction_factor": 2},
        "space": {
            "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
            "dropout": {"low": 0.0, "high": 0.6},
            "batch_size": {"choices": [128, 256]},
        },
    },
    "final": None,
    "retrain": {"num_epochs": 8, "workers": 2},
    "max_failures": 1000,
}


@dataclass(frozen=True)
class Tried:
    """One run under fire, and its verdict."""

    story: Story
    verdict: Verdict
    concurrent: int  # trials at a time
    lost_s: list[float]  # by kill
    num_retrainings_compared: int


@dataclass
class Report:
    seed: int
    wanted: int  # kills in each stage
    workers: int  # of each retraining
    reference: Story
    tried: list[Tried] = field(default_factory=list)
    control: Tried | None = None  # the same with nothing left of the record

    @property
    def is_good(self) -> bool:
        """Nothing was lost where it must not be, it was noticed where it was, and there were enough kills to say so."""
        return self.has_held and self.is_enough

    @property
    def has_held(self) -> bool:
        return self._is_noticed and all(tried.verdict.is_good for tried in self.tried)

    @property
    def _is_noticed(self) -> bool:
        """A control that did not get to its end has shown nothing."""
        if self.control is None:
            return True
        return self.control.story.exit_codes[-1:] == [0] and not self.control.verdict.is_good

    @property
    def is_enough(self) -> bool:
        return all(self.num_kills(stage) >= self.wanted for stage in STAGES)

    def num_kills(self, stage: Stage) -> int:
        return sum(kill.stage == stage for tried in self.tried for kill in tried.story.kills)


class Harness:
    """Makes runs of the job below a folder, undisturbed or under fire, and judges them."""

    def __init__(self, workdir: Path, ray_dir: Path, seed: int, say: Callable[[str], None], **changes: Any) -> None:
        self._workdir = workdir
        self._ray_dir = ray_dir
        self._killer = Killer(seed, say)
        self._changes = changes

    def job(self, concurrent: int) -> Job:
        spec = self._workdir / f"{concurrent}-at-a-time.yaml"
        content = SPEC | self._changes
        content["search"] = content["search"] | {"max_concurrent_trials": concurrent}
        spec.parent.mkdir(parents=True, exist_ok=True)
        spec.write_text(yaml.safe_dump(content))
        return Job(spec, self._workdir / "runs", self._ray_dir)

    def undisturbed(self) -> tuple[Story, Outcome, Pace]:
        """Raises AssertionError where it is not fit to be compared with."""
        job = self.job(1)
        story = self._killer.run(job, "undisturbed")
        run = RunDir(job.storage / "undisturbed")
        verdict = judge(story, run, None, is_exact=True)
        assert verdict.is_good, verdict
        outcome = outcome_of(run)
        assert len(outcome.weights) == 2, "the search selected the baseline: give the spec another seed"
        return story, outcome, Pace.of(story, run)

    def under_fire(
        self, name: str, aims: Sequence[Aim], concurrent: int, reference: Outcome | None, forget: bool = False
    ) -> Tried:
        job = self.job(concurrent)
        story = self._killer.run(job, name, aims, forget)
        shutil.rmtree(self._ray_dir, ignore_errors=True)  # the logs of its clusters
        try:
            return _tried(story, RunDir(job.storage / name), concurrent, reference)
        except CorruptFileError as error:
            return Tried(story, Verdict(name, [], [], [], [str(error)]), concurrent, [], 0)


def _tried(story: Story, run: RunDir, concurrent: int, reference: Outcome | None) -> Tried:
    """Raises CorruptFileError."""
    return Tried(
        story=story,
        verdict=judge(story, run, reference, is_exact=concurrent == 1),
        concurrent=concurrent,
        lost_s=seconds_lost(story, events_of(run)),
        num_retrainings_compared=num_shared_retrainings(reference, outcome_of(run)) if reference else 0,
    )


def bombard(
    workdir: Path, num_kills: int, seed: int, workers: int, with_control: bool, say: Callable[[str], None]
) -> Report:
    """Kill at least `num_kills` times, a quarter of them in each stage; one and two trials at a time take turns.

    workers: of each retraining. With one worker both retrainings run side by side, with two one after the other.

    An interrupt (Ctrl-C) ends the kills, not the report.
    """
    with short_folder() as ray_dir:
        harness = Harness(workdir, ray_dir, seed, say, retrain=SPEC["retrain"] | {"workers": workers})
        story, reference, pace = harness.undisturbed()
        say(f"undisturbed: {story.elapsed_s:.1f} s, {pace}")
        report = Report(seed, -(-num_kills // len(STAGES)), workers, story)
        try:
            for number in range(1, 2 * _num_runs(num_kills) + 3):
                quota = _missing(report)
                if not any(quota.values()):
                    break
                aims = draw_aims(random.Random(f"{seed}/{number}"), pace, quota)
                name, concurrent = f"killed-{number:02d}", 2 - number % 2
                report.tried.append(harness.under_fire(name, aims, concurrent, reference))
                say(_line_of(report.tried[-1]))
                pace = pace.after(report.tried[-1].story)
        except KeyboardInterrupt:
            say("interrupted: the table is of the runs that had ended")
        if with_control:
            report.control = harness.under_fire("control", control_aims(pace), 1, reference, forget=True)
            say(_line_of(report.control))
    return report


def control_aims(pace: Pace) -> list[Aim]:
    """Drivers only: what a living one knows is not lost with the record."""
    half = (pace.search_epochs // 2, pace.retrain_epochs // 2)
    return [Aim("search", "driver", half[0]), Aim("retrain", "driver", half[1])]


def _num_runs(num_kills: int) -> int:
    return -(-num_kills // (KILLS_PER_STAGE_AND_RUN * len(STAGES)))


def _missing(report: Report) -> dict[Stage, int]:
    """What the next run is to be hit by."""
    return {stage: min(max(report.wanted - report.num_kills(stage), 0), KILLS_PER_STAGE_AND_RUN) for stage in STAGES}


def _line_of(tried: Tried) -> str:
    story = tried.story
    return (
        f"{story.run}: {'good' if tried.verdict.is_good else 'BAD'}, {tried.concurrent} at a time, {len(story.kills)} "
        f"kills ({story.num_missed} missed), {len(story.exit_codes)} sessions, {story.elapsed_s:.1f} s"
        + ("" if tried.verdict.is_good else f"\n  {tried.verdict}")
    )


@contextmanager
def short_folder() -> Iterator[Path]:
    """For Ray's own files: sockets lie below it, and their paths cannot be long."""
    folder = Path(tempfile.mkdtemp(prefix="mrc-", dir="/tmp"))
    try:
        yield folder / "ray"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
