"""What the pipeline hands to a backend: trainings to do, and the images to do them on."""

from dataclasses import dataclass, replace

from mnist_ray.config import StepMode, TrainingConfig
from mnist_ray.data import NUM_CLASSES, LabelledImages, PixelStatistics


@dataclass(frozen=True)
class TrainingTask:
    """One training for a backend."""

    id: str
    config: TrainingConfig
    checkpoints: str  # the training's folder or address; below it each owner of the run has one
    fencing_token: int  # of the run's owner
    sentinel: str  # a file of the run that every machine sees which shares the run's storage


@dataclass(frozen=True)
class TrainingImages:
    """The images of a stage, before they are tensors."""

    train: LabelledImages
    validation: LabelledImages | None  # None where a training also learns from the validation split
    statistics: PixelStatistics  # of the images that the search trains on
    num_classes: int = NUM_CLASSES


@dataclass(frozen=True)
class Failure:
    """Why a training came to no result."""

    reason: str  # one line for people
    trace: str | None = None


@dataclass(frozen=True)
class Execution:
    """How and where a training ran."""

    workers: int
    threads: int  # of each worker
    device: str
    num_failures: int  # how often the training was started again
    steps: StepMode | None = None  # None where the training did not get that far

    def with_steps(self, steps: StepMode | None) -> "Execution":
        return replace(self, steps=steps)


@dataclass(frozen=True)
class RetrainingEnd:
    """The end of a retraining: its weights as safetensors, or why there are none."""

    id: str
    model: bytes | None
    failure: Failure | None
    execution: Execution
