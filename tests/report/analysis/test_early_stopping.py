"""Early scores that rank unlike final ones are noticed."""

from pathlib import Path

from mnist_ray.config import Stage
from mnist_ray.record.events import TrainingCreated, TrainingEnded
from mnist_ray.record.lease import owned
from mnist_ray.record.rundir import RunDir
from mnist_ray.record.writer import RunWriter
from tests.report.analysis.test_search_review import review
from tests.report.made_up import made_up_spec, session_start, training_events


def test_reversed_ranks_are_noticed(tmp_path: Path) -> None:
    """First scores in the opposite order of the last ones, and a final round with hardly any spread."""
    spec = made_up_spec(tmp_path, search={"num_trials": 20, "early_stopping": {"grace_epochs": 1}})
    run = RunDir(tmp_path / "early")

    def record(name: str, stage: Stage, dropout: float, first: float, last: float, of: str | None = None) -> None:
        values = spec.baseline.model_copy(update={"dropout": dropout})
        number = int(name.removeprefix("trial-")) if stage == "search" else None
        config = spec.training_config(values, 6, 0)
        created = TrainingCreated(id=name, stage=stage, config=config, number=number, of=of)
        for event in [*training_events(created, [first] * 5 + [last]), TrainingEnded(id=name, status="complete")]:
            writer.record(event)

    writer: RunWriter
    with owned(run, when_lost=lambda: None) as writer:
        writer.record(session_start(spec))
        for number in range(20):
            record(f"trial-{number:04d}", "search", 0.02 * number, 0.3 + 0.01 * number, 0.3 - 0.01 * number)
        for seed in (0, 1):
            name = f"final-trial-0019-seed-{seed}"
            record(name, "final", 0.38, 0.49, 0.11 + 0.0001 * seed, of="trial-0019")
    assert any("Early scores do not rank" in warning.text for warning in review(run).warnings)
