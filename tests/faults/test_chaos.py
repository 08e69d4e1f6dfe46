"""The loop of random kills in its short form, and that what judges it is no soft judge.

The long form is `make chaos`.
"""

import dataclasses
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.benchmarks.findings import put_between
from mnist_ray.metrics import EpochMetrics, Score
from mnist_ray.record import events
from mnist_ray.record.rundir import RunDir
from tools.chaos import processes, table, verdict
from tools.chaos.aims import Pace, draw_aims
from tools.chaos.killing import Aim, Kill, Story, digest, events_of, finished, training_of
from tools.chaos.loop import SPEC, Harness, Report, Tried, short_folder
from tools.chaos.session import STAGES, stage_of
from tools.chaos.verdict import Outcome, judge, outcome_of, ran_again, seconds_lost

pytestmark = pytest.mark.timeout(900)  # real jobs; under a tenth of it on a quiet machine

SMALLER = {
    "search": SPEC["search"] | {"num_trials": 4, "num_epochs": 2},
    "retrain": {"num_epochs": 4, "workers": 2},
}
SHORT = [
    Aim("search", "trial", epochs=1),
    Aim("search", "driver", epochs=3),
    Aim("retrain", "rank", epochs=2),
    Aim("retrain", "driver", epochs=5),
]


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    story: Story
    outcome: Outcome
    run: RunDir


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with short_folder() as ray_dir:
        yield Harness(tmp_path_factory.mktemp("chaos"), ray_dir, 1, print, **SMALLER)


@pytest.fixture(scope="module")
def undisturbed(harness: Harness) -> Undisturbed:
    story, outcome, _ = harness.undisturbed()
    return Undisturbed(story, outcome, RunDir(harness.job(1).storage / "undisturbed"))


@pytest.fixture
def copied(undisturbed: Undisturbed, tmp_path: Path) -> RunDir:
    """A run that may be doctored."""
    shutil.copytree(undisturbed.run.path, tmp_path / "copied")
    return RunDir(tmp_path / "copied")


# --- real kills --------------------------------------------------------------------------------------------------


def test_killed_run_ends_the_same(harness: Harness, undisturbed: Undisturbed) -> None:
    tried = harness.under_fire("killed", SHORT, 1, undisturbed.outcome)
    assert [(kill.stage, kill.target) for kill in tried.story.kills] == [(aim.stage, aim.role) for aim in SHORT]
    assert tried.story.exit_codes == [-9, -9, 0]
    assert tried.verdict.is_good, tried.verdict


@pytest.mark.slow
def test_loss_of_the_record_is_noticed(harness: Harness) -> None:
    """Of the record nothing is left after a driver's death: the trial that had ended runs again, which is noticed."""
    tried = harness.under_fire("control", [Aim("search", "driver", epochs=3)], 1, None, forget=True)
    assert len(tried.story.kills) == 1
    assert tried.story.exit_codes == [-9, 0]
    assert tried.story.kills[0].ended
    assert set(tried.verdict.ran_twice) == set(tried.story.kills[0].ended)
    assert not tried.verdict.is_good


def test_processes_of_a_session_are_killed() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as leader:
        found = _until(lambda: processes.of_session(leader.pid), lambda found: len(found) == 2)
        assert [process.role for process in found] == [None, None]
        assert processes.kill(found[0])
        assert leader.wait(10) == -signal.SIGKILL
        assert _until(lambda: processes.of_session(leader.pid), lambda left: len(left) == 1) == found[1:]
        assert not processes.kill(found[0])
        assert processes.kill(found[1])
        _until(lambda: processes.of_session(leader.pid), lambda left: not left)


def _until(look: Callable[[], Any], is_so: Callable[[Any], bool]) -> Any:
    import time

    deadline = time.monotonic() + 20
    while not is_so(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::ImplicitFunc.train", "trial"),
        ("ray::RayTrainWorker.poll_status", "rank"),
        ("ray::IDLE", "other"),
        ("ray::DashboardAgent", None),
        ("python -m mnist_ray.cli run", None),
    ],
)
def test_titles_tell_roles(title: str, role: str | None) -> None:
    assert processes.Process(1, 1, title).role == role


# --- the judge ---------------------------------------------------------------------------------------------------


def judged(run: RunDir, undisturbed: Undisturbed, **facts: Any) -> verdict.Verdict:
    story = dataclasses.replace(undisturbed.story, **facts)
    return judge(story, run, undisturbed.outcome, is_exact=True)


def test_undisturbed_run_is_good(undisturbed: Undisturbed, copied: RunDir) -> None:
    assert judged(copied, undisturbed).is_good


def test_changed_trial_is_noticed(undisturbed: Undisturbed, copied: RunDir) -> None:
    ended = {training.id: digest(training) for training in finished(copied)}
    assert judged(copied, undisturbed, kills=[kill_at(0, ended)]).is_good
    ended["trial-0001"] = "another digest"
    found = judged(copied, undisturbed, kills=[kill_at(0, ended)])
    assert found.ran_twice == ["trial-0001"]
    found = judged(copied, undisturbed, kills=[kill_at(0, {"trial-0009": "gone since then"})])
    assert found.ran_twice == ["trial-0009"]


@pytest.mark.parametrize("kind", [events.TrainingCreated, events.EpochReported, events.TrainingEnded])
def test_events_after_an_end_are_noticed(undisturbed: Undisturbed, kind: type[events.Event]) -> None:
    published = events_of(undisturbed.run)
    assert ran_again(published) == set()
    again = next(event for event in published if isinstance(event, kind))
    assert ran_again([*published, again]) == {training_of(again)}


@pytest.mark.parametrize("kind", [events.TrainingCreated, events.TrainingEnded])
def test_missing_begin_or_end_is_noticed(
    undisturbed: Undisturbed, kind: type[events.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = [
        event
        for event in events_of(undisturbed.run)
        if not (isinstance(event, kind) and training_of(event) == "trial-0002")
    ]
    monkeypatch.setattr(verdict, "events_of", lambda run: lacking)
    (fault,) = judged(undisturbed.run, undisturbed).faults
    assert fault.startswith("trial-0002")


def test_running_trial_in_study_is_noticed(undisturbed: Undisturbed, copied: RunDir) -> None:
    with sqlite3.connect(copied.paths.study) as study:
        assert study.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 3").rowcount == 1
    study.close()
    assert judged(copied, undisturbed).left_running == ["trial 3"]


def test_one_other_bit_is_noticed(undisturbed: Undisturbed, copied: RunDir) -> None:
    training = copied.state.trainings("retrain")[0].id
    weights = bytearray(copied.paths.model(training).read_bytes())
    weights[-1] ^= 1
    copied.paths.model(training).write_bytes(weights)
    (difference,) = judged(copied, undisturbed).differences
    assert difference.startswith(f"weights: {training}")


def test_wrong_tables_are_noticed(undisturbed: Undisturbed, copied: RunDir) -> None:
    content = copied.paths.results_csv.read_text()
    copied.paths.results_csv.write_text(content.replace("trial-0001", "trial-0007"))
    assert judged(copied, undisturbed).faults == ["results.csv is not what the record says"]
    copied.paths.study.unlink()
    assert judged(copied, undisturbed).faults == ["study.sqlite3 is missing"]


@pytest.mark.parametrize(
    "facts", [{"gave_up": ["exit code 1"]}, {"left_behind": ["ray::IDLE"]}, {"stuck": "it did not end"}]
)
def test_leftovers_are_faults(undisturbed: Undisturbed, facts: dict[str, Any]) -> None:
    assert len(judged(undisturbed.run, undisturbed, **facts).faults) == 1


def test_any_other_number_is_noticed(undisturbed: Undisturbed) -> None:
    def doctored(part: str, change: Callable[[dict[str, Any]], object]) -> list[str]:
        found = outcome_of(undisturbed.run)
        change(getattr(found, part))
        return verdict.differences(undisturbed.outcome, found)

    retrained = next(iter(undisturbed.outcome.retrainings))
    assert doctored("trials", lambda trials: None) == []
    assert doctored("trials", lambda trials: trials["trial-0000"]["history"][0].update(val_loss=0.5))
    assert doctored("trials", lambda trials: trials["trial-0000"]["config"].update(dropout=0.5))
    assert doctored("trials", lambda trials: trials["trial-0000"].update(status="failed"))
    assert doctored("trials", lambda trials: trials.pop("trial-0003"))
    assert doctored("retrainings", lambda trainings: trainings[retrained]["history"].pop())
    assert doctored("tested", lambda tested: tested[retrained]["test"].update(logits="another"))
    assert doctored("selected", lambda selected: selected.update(training="trial-0009"))


def test_equal_configurations_are_compared(undisturbed: Undisturbed) -> None:
    found = outcome_of(undisturbed.run)
    found.trials["trial-0003"]["config"]["dropout"] += 0.01  # another trial, of which nothing can be said
    found.trials["trial-0003"]["history"][0]["val_loss"] += 1
    found.trials["trial-0000"]["history"] = found.trials["trial-0000"]["history"][:1]  # the same, stopped earlier
    assert verdict.shared_differences(undisturbed.outcome, found) == []
    found.trials["trial-0001"]["history"][0]["val_loss"] += 1
    (retrained, *_) = found.weights
    found.weights[retrained] = "another hash"
    assert len(verdict.shared_differences(undisturbed.outcome, found)) == 2


# --- what is drawn, said and measured ------------------------------------------------------------------------------


def kill_at(at: float, ended: dict[str, str] | None = None, **facts: Any) -> Kill:
    known: dict[str, Any] = {"number": 1, "run": "killed", "seed": 1, "seconds": at, "stage": "search"}
    known |= {"target": "driver", "title": "python", "num_events": 0, "last_event": "none"}
    return Kill(at=at, ended=ended or {}, **(known | facts))


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        ("", "start"),
        ("results go to /tmp/x\n12:00:00 data: done in 1.3 s\n", "start"),
        ("12:00:00 data: done in 1.3 s\n12:00:01 search: 0 of 8 trials\n", "search"),
        ("12:00:01 search: 0 of 8 trials\n12:00:09 search: done in 8.0 s\n", "search"),
        ("12:00:09 search: done in 8.0 s\n12:00:10 retrain: 0 of 16 epochs\n", "retrain"),
        ("12:00:10 retrain: 0 of 16 epochs\n12:00:20 retrain: done in 9.9 s\n", "test"),
        ("12:00:20 test: 0 of 2 models\n12:00:21 test: done in 0.2 s\n3 trials: 3 complete\n", "test"),
    ],
)
def test_output_tells_the_stage(said: str, stage: str) -> None:
    assert stage_of(said) == stage


def test_aims_follow_from_the_seed() -> None:
    pace = Pace(6.0, 14, 16, 4.0, 0.5, 3.0)
    quota = dict.fromkeys(STAGES, 3)
    aims = draw_aims(random.Random("1/1"), pace, quota)
    assert aims == draw_aims(random.Random("1/1"), pace, quota)
    assert aims != draw_aims(random.Random("1/2"), pace, quota)
    assert {stage: sum(aim.stage == stage for aim in aims) for stage in STAGES} == quota
    at_work = [STAGES.index(aim.stage) for aim in aims if aim.stage != "start"]
    assert at_work == sorted(at_work)
    for before, aim in zip([None, *aims], aims, strict=False):
        if aim.stage == "start" and before is not None:  # only a driver's death is followed by a start
            assert before.role == "driver" or before.stage == "start"


def test_pace_follows_the_machine() -> None:
    pace = Pace(6.0, 14, 16, 4.0, 0.5, 3.0)
    later = Story("killed", signs={"start": 80.0, "test": 86.0}, starts_s=[4.0, 5.0], ended=88.0)
    assert pace.after(later) == Pace(5.0, 14, 16, 4.0, 0.5, 2.0)
    assert pace.after(Story("never got anywhere", signs={"start": 80.0}, ended=88.0)) == pace


def test_progress_ends_the_lost_seconds() -> None:
    def event(second: int, epoch: int) -> events.Event:
        metrics = EpochMetrics(epoch, 1.0, Score(0.5, 1, 2), None)
        return events.EpochReported(at=f"1970-01-01T00:00:{second:02d}+00:00", id="trial-0000", metrics=metrics)

    published: list[events.Event] = [event(1, 1), event(12, 1), event(14, 2)]  # epoch 1 is reported again
    story = Story("killed", kills=[kill_at(10), kill_at(13), kill_at(20)], ended=25)
    assert seconds_lost(story, published) == [3, 1, 5]
    assert seconds_lost(Story("not hit", ended=25), published) == []


def test_table_replaces_the_marked_lines(tmp_path: Path, undisturbed: Undisturbed) -> None:
    page = tmp_path / "page.md"
    begin, end = table.MARKERS[2]
    page.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    good = judged(undisturbed.run, undisturbed)
    story = dataclasses.replace(undisturbed.story, kills=[kill_at(0, stage=stage) for stage in STAGES])
    report = Report(1, 1, 2, undisturbed.story, [Tried(story, good, 1, [2.0, 4.0, 9.0], 2)])
    text = table.markdown(report, "`the command`", 60.0, "2026-11-22")
    put_between(page, begin, end, text)
    assert page.read_text() == f"above\n{begin}\n{text}\n{end}\nbelow\n"
    assert "| search | 1 | 0 | 0 | 0 | 1 |" in text
    assert "| seconds lost by a kill: median, worst | 4.0, 9.0 |" in text
    assert "everything held" in text
    assert ": everything held; NOT 2 kills in every stage." in table.markdown(
        dataclasses.replace(report, wanted=2), "", 60.0, ""
    )
    bad = dataclasses.replace(report.tried[0], verdict=dataclasses.replace(good, left_running=["trial 3"]))
    assert ": NOT everything held." in table.markdown(dataclasses.replace(report, tried=[bad]), "", 60.0, "")
    for last_code, is_shown in ((0, True), (6, False)):  # a control that was refused has shown nothing
        control = dataclasses.replace(bad, story=dataclasses.replace(story, exit_codes=[-9, last_code]))
        assert dataclasses.replace(report, control=control).has_held == is_shown
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the lines"):
        put_between(page, begin, end, text)
