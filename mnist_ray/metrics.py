"""The numbers that a training reports: of one split, and of one epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from mnist_ray.config import Objective

# What is read from a record; ours keep to these bounds anyway.
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, lt=1e12)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True)
class Score:
    """The result on `num_examples` examples; `loss` is the mean cross-entropy in nats."""

    loss: Finite
    num_correct: Count
    num_examples: Annotated[Count, Field(ge=1)]

    @property
    def accuracy(self) -> float:
        """The share of correct answers, 0 to 1."""
        return self.num_correct / self.num_examples

    def columns(self, prefix: str) -> dict[str, float | int]:
        """The columns of the results table: `val` -> val_loss, val_accuracy, val_correct, val_examples."""
        return {
            f"{prefix}_loss": self.loss,
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_correct": self.num_correct,
            f"{prefix}_examples": self.num_examples,
        }

    @classmethod
    def from_columns(cls, prefix: str, columns: Mapping[str, Any]) -> "Score":
        """Read back what `columns` gives. Raises KeyError."""
        return cls(
            float(columns[f"{prefix}_loss"]), int(columns[f"{prefix}_correct"]), int(columns[f"{prefix}_examples"])
        )


def _checked(score: Score) -> Score:
    if score.num_correct > score.num_examples:
        raise ValueError(f"{score.num_correct} right ones of {score.num_examples} are too many")
    return score


ReadScore = Annotated[Score, AfterValidator(_checked)]  # a score that is read from a record


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one training.

    `train` is measured while learning: with dropout on, on images as they are augmented, with the weights of each step.
    """

    epoch: Annotated[Count, Field(ge=1)]
    elapsed_s: Seconds
    train: ReadScore
    validation: (
        ReadScore | None
    )  # of the model that would ship; None where a training also learns from the validation split
    raw_validation: ReadScore | None = None  # of the last weights, where the model that would ship has their average

    def columns(self) -> dict[str, float | int]:
        """One row of the history table: epoch, elapsed_s, train_*, and val_* and val_raw_* where there are any."""
        row: dict[str, float | int] = {"epoch": self.epoch, "elapsed_s": self.elapsed_s}
        scores = {"train": self.train, "val": self.validation, "val_raw": self.raw_validation}
        for prefix, score in scores.items():
            row |= score.columns(prefix) if score else {}
        return row

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> "EpochMetrics":
        """Read back what `columns` gives. Raises KeyError."""
        scores = [
            Score.from_columns(prefix, columns) if f"{prefix}_loss" in columns else None
            for prefix in ("val", "val_raw")
        ]
        train = Score.from_columns("train", columns)
        return cls(int(columns["epoch"]), float(columns["elapsed_s"]), train, *scores)

    def objective(self, name: Objective) -> float:
        """The value that a search compares: val_loss or val_accuracy."""
        assert self.validation is not None, "a training without a validation split has no objective"
        return self.validation.loss if name == "val_loss" else self.validation.accuracy
