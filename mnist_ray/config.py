"""The job spec: read, check, resolve, dump, compare.

A spec is a frozen value that is checked once, here. Every error names the key, the value, the rule and the
remedy; no other module checks a spec again.
"""

import difflib
import math
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mnist_ray.errors import SpecError
from mnist_ray.storage.files import read_bounded
from mnist_ray.storage.object_stores import EXTRAS, SCHEMES, is_address

DataSetName = Literal["mnist", "fashion_mnist", "kmnist", "qmnist", "digits", "images"]  # images: the user's own
SecondTest = Literal["qmnist50k"]  # QMNIST's 50,000 test images that MNIST does not have
Objective = Literal["val_loss", "val_accuracy"]
Stage = Literal["search", "final", "retrain"]  # the stages that train
Status = Literal["complete", "pruned", "stopped", "failed"]  # stopped: by the time budget
Role = Literal["selected", "baseline", "selected = baseline"]  # of a retraining
StepMode = Literal["eager", "captured"]  # how a training takes its steps; captured: as CUDA graphs
Precision = Literal["float32", "bfloat16"]  # of the convolutions in training; all else is float32
Schedule = Literal["constant", "cosine", "one_cycle"]  # of the learning rate, over the steps of one training
DecidedBy = Literal["test_loss", "test_accuracy"]  # what the verdict compares
TrackerName = Literal["tensorboard", "mlflow", "optuna"]  # programs that show a run while it goes on
KernelMode = Literal["auto", "plain"]  # auto: the fast kernels on CPUs; plain: torch's own layers, optimizer, exchanges

FINAL_EPOCHS = 45  # of the final round where neither the round nor a retraining says how many

MOST = 10**6  # trials, epochs

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# YAML gives lists, so that step is not strict; their items are.
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, strict=False)]


def _checked_workers(value: Any) -> Any:
    ends = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if any(type(end) is not int for end in ends) or not 1 <= ends[0] <= ends[-1]:
        # One rule for both forms: pydantic would report a fault for each.
        rule = "must be a whole number from 1 on, or a list of two, the smaller first, such as [2, 8]"
        raise PydanticCustomError("workers", rule)
    return tuple(ends) if len(ends) == 2 else value


Workers = Annotated[int | tuple[int, int], BeforeValidator(_checked_workers)]


class Recipe(_Part):
    """The published recipe, which is the baseline: a constant learning rate, and the last weights as they are."""

    learning_rate: float = Field(0.001, gt=0, description="The step size of the optimizer, Adam.")
    dropout: float = Field(
        0.25, ge=0, lt=1, description="The share of the activations that training sets to zero, drawn anew each step."
    )
    batch_size: int = Field(
        128,
        ge=1,
        lt=2**31,
        description="The images of one step, over all workers together: on two workers each takes half of them.",
    )


class TrainingParts(_Part):
    """What a training can do beyond the published recipe. The defaults do nothing."""

    schedule: Schedule = Field(
        "constant",
        description="The course of the learning rate over the steps of one training. cosine: it rises to its full "
        "value, then falls to 0 along half a cosine. one_cycle: the same from 1/25 of it, and lower at the end.",
    )
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="The share of the steps in which the learning rate rises at the start, unless it is constant.",
    )
    ema: float = Field(
        0.0,
        ge=0,
        le=0.28,
        description="The width of a moving average of the weights, relative to the training so far; 0 means none. "
        "Where there is one, the averaged network is validated, tested and kept.",
    )
    augment: float = Field(
        0.0,
        ge=0,
        le=2,
        description="The strength of random rotations, scalings and shifts of training images; 0 means none, and 1 "
        "rotates by up to 10 degrees.",
    )
    weight_decay: float = Field(
        0.0, ge=0, lt=1, description="The decay of the weights in each step, apart from the gradient (AdamW)."
    )


class Hyperparameters(TrainingParts, Recipe):
    """The values that a search may vary."""


class TrainingConfig(Hyperparameters):
    """The hyperparameters, budget and seed of one training."""

    num_epochs: int = Field(ge=1, le=MOST)
    seed: int = Field(0, ge=0, lt=2**53)
    precision: Precision = "float32"
    kernels: KernelMode = "auto"

    @property
    def hyperparameters(self) -> Hyperparameters:
        return Hyperparameters(**{name: getattr(self, name) for name in Hyperparameters.model_fields})


Value = int | float | str  # of a hyperparameter


class Range(_Part):
    """An interval of numbers, searched on a linear or a logarithmic scale."""

    low: float = Field(description="The smallest value.")
    high: float = Field(description="The largest value.")
    log: bool = Field(False, description="Whether values are drawn on a logarithmic scale.")
    off: float | None = Field(
        None, description="One more value to try, outside a logarithmic interval: usually 0, which has no logarithm."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}: swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm: use a low above 0 or log: false")
        if self.off is not None and not self.log:
            raise ValueError(f"off {self.off} needs a logarithmic range: set log: true, or leave off out")
        if self.off is not None and self.low <= self.off <= self.high:
            raise ValueError(f"off {self.off} lies between low {self.low} and high {self.high}: leave it out")
        return self

    @property
    def ends(self) -> tuple[float, ...]:
        return (self.low, self.high)

    @property
    def extremes(self) -> tuple[float, ...]:
        """The ends, and the value beside them."""
        return self.ends if self.off is None else (*self.ends, self.off)

    def holds(self, value: Value) -> bool:
        return not isinstance(value, str) and (self.low <= value <= self.high or value == self.off)


class Choices(_Part):
    """A list of values without an order."""

    choices: Annotated[tuple[Value, ...], Field(min_length=1, strict=False)] = Field(
        description="The values to choose from, each of them once."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices {_brief(self.choices)} contains a value twice: remove one")
        return self

    @property
    def extremes(self) -> tuple[Value, ...]:
        return self.choices

    def holds(self, value: Value) -> bool:
        return value in self.choices


def _dimension_kind(value: Any) -> str:
    is_choices = isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value)
    return "choices" if is_choices else "range"


Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_dimension_kind)
]


def _default_space() -> dict[str, Dimension]:
    return {
        "learning_rate": Range(low=1e-4, high=3e-2, log=True),
        "dropout": Range(low=0.0, high=0.6),
        "batch_size": Choices(choices=(32, 64, 128, 256, 512)),
    }


class Data(_Part):
    """The images, and the part of them that the search is judged by."""

    name: DataSetName = Field(description="The data set. Missing files are downloaded; digits needs none.")
    num_validation: int | None = Field(
        None,
        ge=1,
        description="The images of the training set that are held out for validation, equally many of each class as "
        "far as possible. Trials are judged by them; the retraining learns from them too. Left out: 5,000. null, for "
        "your own images alone: those of their validation part, or a tenth, at most 5,000.",
    )
    dir: str | None = Field(
        None,
        description="The folder of the data sets' files, or of your own images. null: $MNIST_RAY_DATA, and "
        "without that ~/.cache/mnist_ray.",
    )
    transpose: bool = Field(
        False, description="Of your own images in arrays: exchange rows and columns, as EMNIST needs."
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Of your own images: the share that is set apart for the test where they have no test part.",
    )

    @model_validator(mode="before")
    @classmethod
    def _validation_of_known_sets(cls, values: Any) -> Any:
        is_known_set = isinstance(values, dict) and values.get("name") != "images"
        return {"num_validation": 5000} | values if is_known_set else values

    @model_validator(mode="after")
    def _keys_of_own_images(self) -> Self:
        if self.name != "images" and (self.transpose or self.test_fraction != 0.2):
            key = "transpose" if self.transpose else "test_fraction"
            raise ValueError(
                f"{key} is for your own images, and name is {self.name}: use name: images, or leave {key} out"
            )
        if self.name != "images" and self.num_validation is None:
            raise ValueError(f"num_validation: null is for your own images, and name is {self.name}: give a number")
        if self.name == "images" and not self.dir:
            raise ValueError("dir is missing, and name is images: name the folder of your images (--data-dir FOLDER)")
        return self


class EarlyStopping(_Part):
    """Asynchronous successive halving (ASHA): at certain epochs, called rungs, the worst trials so far are stopped."""

    grace_epochs: int = Field(
        1,
        ge=1,
        description="The first rung: no trial is stopped before it has trained this many epochs. Each later rung is "
        "reduction_factor times as late.",
    )
    grace_steps: int | None = Field(
        None,
        ge=1,
        description="Moves the first rung back until a trial with the largest batch has taken this many optimizer "
        "steps, so that large batches are not stopped just because they take fewer steps in an epoch.",
    )
    reduction_factor: float = Field(
        4.0,
        gt=1,
        description="At a rung, a trial goes on if its objective is among the best 1/reduction_factor of the trials "
        "that have reached the rung so far, or among the best final.top_k. With 4, rungs lie at epochs 1, 4, 16 and so "
        "on, and three trials in four stop at each.",
    )


class Search(_Part):
    """The search for hyperparameters: trials, each of which trains one network and is judged on the validation images.

    The first trials are fixed: the recipe, and the recipe with the parts of `training`. Optuna suggests the others.
    """

    num_trials: int = Field(
        20, ge=1, le=MOST, description="The number of trials. A run that is not tested yet can be given more later."
    )
    num_epochs: int = Field(10, ge=1, le=MOST, description="The epochs of a trial that is not stopped early.")
    objective: Objective = Field(
        "val_loss", description="The figure that trials are compared by: a low loss, or a high accuracy."
    )
    space: dict[str, Dimension] = Field(
        default_factory=_default_space,
        min_length=1,
        description="The hyperparameters that the search varies, each with a range or a list of choices. All others "
        "have the values of recipe and training.",
    )
    early_stopping: EarlyStopping | None = Field(
        EarlyStopping(),
        description="When trials are stopped early. null: never, which a search over schedule or ema needs.",
    )
    cpus_per_trial: int = Field(
        1,
        ge=1,
        description="The CPUs that a trial reserves, and the threads that it computes with. The network is small: "
        "more trials side by side are faster than more threads for each.",
    )
    gpus_per_trial: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The share of a GPU that a trial reserves: with 0.25, four trials share one. 0: trials use CPUs.",
    )
    max_concurrent_trials: int | None = Field(
        None,
        ge=1,
        description="The most trials at a time. null: as many as the cluster has CPUs and GPUs for. Optuna learns from "
        "trials that have ended, so a search of few trials may find more with fewer at a time.",
    )

    @model_validator(mode="after")
    def _stopping_is_sound(self) -> Self:
        if self.early_stopping is None:
            return self
        if unfit := [key for key in ("schedule", "ema") if key in self.space]:
            raise ValueError(
                "early_stopping compares trials in the middle of their training, where trials with another "
                f"{unfit[0]} do not yet rank as at the end: set early_stopping: null, or leave {unfit[0]} out of "
                "search.space"
            )
        return self


class Final(_Part):
    """The final round: the search's best and the recipe as published, at the full budget and on fresh seeds."""

    top_k: int = Field(3, ge=1, le=1000, description="The number of the search's best configurations that take part.")
    seeds: int = Field(
        2, ge=1, le=1000, description="The trainings of each configuration, on seeds that are the same for all."
    )
    num_epochs: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="The epochs of each training. null: those of retrain, or 45 where retrain is null.",
    )
    keep_recipe_within_se: float = Field(
        1.0,
        ge=0,
        description="The recipe is selected unless a configuration beats its mean by more than this many standard "
        "errors. 0: the best mean wins.",
    )

    @model_validator(mode="after")
    def _error_is_known(self) -> Self:
        if self.seeds == 1 and self.keep_recipe_within_se > 0:
            raise ValueError(
                f"seeds 1 leaves no standard error for keep_recipe_within_se {self.keep_recipe_within_se:g}: "
                "use 2 seeds or more, or set final.keep_recipe_within_se: 0, with which the best mean wins"
            )
        return self


class Retrain(_Part):
    """The retraining of the selected configuration and the baseline, on all training images. Both are tested then."""

    num_epochs: int = Field(45, ge=1, le=MOST, description="The epochs of each retraining.")
    seeds: Seeds = Field(
        (0,),
        description="The seeds of the retrainings: one training of each configuration on each seed. Three or more let "
        "the verdict speak of configurations, not only of the networks at hand.",
    )
    baseline: bool = Field(
        True, description="Whether the baseline is retrained too, on the same seeds. Without it there is no verdict."
    )
    baseline_from: str | None = Field(
        None,
        description="A run (name, folder or address) whose retrained baseline is taken over, so that it is not trained "
        "again. It must have the same data, recipe, epochs and seeds.",
    )
    concurrent: int | None = Field(
        None, ge=1, description="The most retrainings at a time. null: as many as the cluster has room for."
    )
    workers: Workers = Field(
        1,
        description="The worker processes that share each retraining; each computes its part of every batch. [2, 8] "
        "lets it run on 2 to 8 workers, as many as the cluster has room for at the time.",
    )
    cpus_per_worker: int = Field(
        1, ge=1, description="The CPUs that a worker reserves, and the threads that it computes with."
    )
    gpus_per_worker: int = Field(0, ge=0, le=1, description="1: each worker computes on a GPU of its own. 0: on CPUs.")

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds {list(self.seeds)} contains a seed twice, which is no further evidence: remove one"
            )
        if self.baseline_from is not None and not self.baseline:
            raise ValueError(
                f"baseline_from {self.baseline_from} needs retrain.baseline: true: set that, or leave out baseline_from"
            )
        return self

    @property
    def num_trainings(self) -> int:
        """The trainings of the retraining stage, those that are taken over from another run aside."""
        return len(self.seeds) * (2 if self.baseline and self.baseline_from is None else 1)

    @property
    def fewest_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def workers_in_words(self) -> str:
        return str(self.workers) if isinstance(self.workers, int) else "{} to {}".format(*self.workers)


class Test(_Part):
    """The tests beside the data set's own test split. Each is read once, after the selection."""

    also: Annotated[tuple[SecondTest, ...], Field(max_length=1, strict=False)] = Field(
        (), description="A further test: QMNIST's 50,000 test images that MNIST does not have. For mnist and qmnist."
    )


class Report(_Part):
    """The rule of the verdict, fixed before anything is known."""

    decided_by: DecidedBy | None = Field(
        None, description="The figure that the verdict compares. null: the test's counterpart of search.objective."
    )
    equivalence_points: float = Field(
        0.1,
        ge=0,
        description="A difference of accuracy, in percentage points, that does not matter: two configurations that "
        "differ by less for certain are equivalent.",
    )
    equivalence_loss: float = Field(0.001, ge=0, description="Likewise a difference of loss that does not matter.")


class Autoscaling(_Part):
    """The CPUs and GPUs that the cluster's autoscaler may have running at a time, which Ray does not report.

    Without these a job counts with what is there when it starts.
    """

    cpus: int = Field(
        0, ge=0, description="The most CPUs that the autoscaler may have running; 0: those that are there."
    )
    gpus: int = Field(
        0, ge=0, description="The most GPUs that the autoscaler may have running; 0: those that are there."
    )


class JobSpec(_Part):
    """A whole job. `data.name` is the only key without a default."""

    name: str = Field(
        "run",
        description="The run's name, and its folder's in storage: up to 64 letters, digits, '.', '_' and '-'. The same "
        "name goes on with the same run.",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="The seed of the validation split, of Optuna's suggestions and of the trials."
    )
    data: Data
    recipe: Recipe = Recipe()  # of the baseline
    training: TrainingParts = TrainingParts()  # of the trials and the selected configuration, never of the baseline
    precision: Precision = Field(
        "float32", description="The numbers that convolutions are computed with in training; all else is float32."
    )
    kernels: KernelMode = Field(
        "auto",
        description="auto: the project's own fast kernels on CPUs. plain: torch's layers, optimizer and exchanges, "
        "which round slightly differently.",
    )
    search: Search = Search()
    final: Final | None = Field(
        Final(), description="The final round. null: the search's best trial is selected directly."
    )
    retrain: Retrain | None = Field(
        Retrain(), description="The retraining. null: the models of the final round are tested, without a retraining."
    )
    test: Test = Test()
    report: Report = Report()
    max_hours: float | None = Field(
        None,
        gt=0,
        description="The most hours of searching, over all sessions of the run. null: as long as num_trials takes.",
    )
    autoscaling: Autoscaling = Autoscaling()
    max_failures: int = Field(
        2, ge=0, description="How often a trial, or a group of retraining workers, is started again after it died."
    )
    storage: str = Field(
        "results", description="The folder that holds the runs, or an address: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER."
    )
    log_to: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (),
        description="Trackers that show the run while it goes on: tensorboard, optuna, mlflow, or "
        "mlflow=ADDRESS_OR_FOLDER.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not RUN_NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} is not a valid run name: use up to 64 letters, digits, '.', '_' and '-', "
                "beginning with a letter or a digit"
            )
        check_storage(self.storage)
        self._check_trackers()
        for key, dimension in self.search.space.items():
            _check_dimension(key, dimension)
        self._check_batches_fill_workers()
        if self.retrain is None and self.final is None:
            raise ValueError(
                "retrain: null tests the models of the final round, but final is null too: set one of the two"
            )
        if self.test.also and self.data.name not in ("mnist", "qmnist"):
            raise ValueError(
                f"test.also {list(self.test.also)} contains MNIST's digits, but data.name is "
                f"{self.data.name}: use data.name mnist or qmnist, or leave out test.also"
            )
        return self

    def _check_trackers(self) -> None:
        names = [entry.partition("=")[0] for entry in self.log_to]
        for entry, name in zip(self.log_to, names, strict=True):
            _, sign, where = entry.partition("=")
            if name not in get_args(TrackerName) or (sign and (name != "mlflow" or not where)):
                raise ValueError(
                    f"log_to {_brief(entry)} is no tracker: use tensorboard, optuna, mlflow or "
                    f"mlflow=ADDRESS_OR_FOLDER{_did_you_mean(name, get_args(TrackerName))}"
                )
            if names.count(name) > 1:
                raise ValueError(f"log_to holds {name} twice: remove one")
            if is_address(where) and set("@?#") & set(where):
                raise ValueError(
                    "log_to mlflow=... is an address that holds one of @ ? #: leave user names and passwords to "
                    "$MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD, or write mlflow alone and set "
                    "$MLFLOW_TRACKING_URI; neither is kept on record"
                )
            if name != "mlflow" and is_address(self.storage):
                raise ValueError(
                    f"log_to {name} writes files that grow, which storage {self.storage.partition('://')[0]}://... "
                    "does not have: use a folder as storage, or log to mlflow=ADDRESS"
                )

    def _check_batches_fill_workers(self) -> None:
        searched = self.search.space.get("batch_size")
        smallest = {"recipe.batch_size": self.recipe.batch_size}
        if searched is not None:
            smallest["search.space.batch_size"] = min(map(int, searched.extremes))
        for key, batch_size in smallest.items():
            if self.retrain and batch_size < self.retrain.most_workers:
                raise ValueError(
                    f"{key} {batch_size} is smaller than retrain.workers {_as_yaml(self.retrain.workers)}: "
                    f"raise it, or use at most {batch_size} workers"
                )

    @property
    def baseline(self) -> Hyperparameters:
        """The recipe as published, without the parts of `training`."""
        return Hyperparameters(**self.recipe.model_dump())

    @property
    def starting_point(self) -> Hyperparameters:
        """The recipe with the parts of `training`: what a trial has for all that the search does not vary."""
        return Hyperparameters(**self.recipe.model_dump(), **self.training.model_dump())

    @property
    def decided_by(self) -> DecidedBy:
        """The quantity that the verdict compares."""
        followed: dict[Objective, DecidedBy] = {"val_loss": "test_loss", "val_accuracy": "test_accuracy"}
        return self.report.decided_by or followed[self.search.objective]

    def training_config(self, values: Hyperparameters, num_epochs: int, seed: int) -> TrainingConfig:
        return TrainingConfig(
            **values.model_dump(), num_epochs=num_epochs, seed=seed, precision=self.precision, kernels=self.kernels
        )

    @property
    def fixed_trials(self) -> tuple[Hyperparameters, ...]:
        """The configurations that a search begins with, whatever its space holds: the baseline comes first."""
        return (self.baseline,) if self.starting_point == self.baseline else (self.baseline, self.starting_point)

    def is_in_space(self, values: Hyperparameters) -> bool:
        """Report whether the search could suggest a configuration."""
        return all(
            self.search.space[key].holds(value)
            if key in self.search.space
            else value == getattr(self.starting_point, key)
            for key, value in values
        )

    @property
    def final_epochs(self) -> int:
        """The budget of a training of the final round."""
        return (self.final and self.final.num_epochs) or (self.retrain.num_epochs if self.retrain else FINAL_EPOCHS)

    @property
    def tested_epochs(self) -> int:
        """The budget of the models that are tested: retrained ones, or those of the final round."""
        return self.retrain.num_epochs if self.retrain else self.final_epochs

    @property
    def num_tested_seeds(self) -> int:
        """The number of models that are tested of each configuration."""
        if self.retrain:
            return len(self.retrain.seeds)
        assert self.final is not None
        return self.final.seeds

    @property
    def tests_baseline(self) -> bool:
        """Whether models of the baseline are tested beside those of the selected configuration."""
        return self.retrain is None or self.retrain.baseline

    @property
    def most_final_trainings(self) -> int:
        """The number of trainings in the final round, if the search finds enough configurations."""
        return (self.final.top_k + 1) * self.final.seeds if self.final else 0

    @property
    def _largest_batch(self) -> tuple[str, int]:
        """The key and the value of the largest batch size that the search can try."""
        searched = self.search.space.get("batch_size")
        if searched is None:
            return "recipe.batch_size", self.recipe.batch_size
        return "search.space.batch_size", max(map(int, searched.extremes))

    def oversized_batch(self, num_train: int) -> str | None:
        """Describe a batch that holds more images than there are; None where none does.

        num_train: the examples that a trial trains on.
        """
        key, largest = self._largest_batch
        if largest <= num_train:
            return None
        return (
            f"{key} goes up to {largest}, but trials learn from {num_train} images: an epoch with such a batch is "
            f"a single step, which learns next to nothing: use batches of {max(1, num_train // 10)} images or fewer"
        )

    def grace_epochs(self, num_train: int) -> int | None:
        """Return the epoch before which no trial stops; None without early stopping.

        num_train: the examples that a trial trains on.
        """
        rule = self.search.early_stopping
        if rule is None:
            return None
        steps_per_epoch = math.ceil(num_train / self._largest_batch[1])
        return max(rule.grace_epochs, math.ceil((rule.grace_steps or 0) / steps_per_epoch))


def check_storage(storage: str) -> None:
    """Check that an address is one of a store that can keep a run. Raises SpecError, which repeats no password."""
    if not is_address(storage):
        return
    scheme, _, rest = storage.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise SpecError(
            f"storage begins with {_brief(scheme)}://, which cannot keep a run: use a folder, or one of {known}"
        )
    if set("@?#") & set(rest):
        raise SpecError(
            f"storage {scheme}://... contains one of @ ? #: use {scheme}://BUCKET/FOLDER, and set user names and "
            "passwords in the environment of the nodes"
        )
    if not rest.partition("/")[0]:
        raise SpecError(f"storage {scheme}:// lacks a bucket: use {scheme}://BUCKET/FOLDER")
    package, extra = EXTRAS[scheme]
    if find_spec(package) is None:
        raise SpecError(
            f"storage {scheme}://... needs the package {package}, which {sys.executable} lacks: install it here and on "
            f"every node with pip install 'mnist-ray[{extra}]'"
        )


def _check_dimension(key: str, dimension: Range | Choices) -> None:
    """Check that a dimension is a hyperparameter, and that a training accepts each of its ends. Raises ValueError."""
    where = f"search.space.{key}"
    known = list(Hyperparameters.model_fields)
    if key not in known:
        raise ValueError(f"{where} is not a hyperparameter: use one of {', '.join(known)}{_did_you_mean(key, known)}")
    values: Sequence[Value] = dimension.extremes
    if is_whole(key) and isinstance(dimension, Range):
        if any(end != int(end) for end in dimension.extremes):
            raise ValueError(
                f"{where}: {key} is a whole number, so low and high must be whole numbers, not {dimension.extremes}"
            )
        values = [int(end) for end in dimension.extremes]
    for value in values:
        try:
            Hyperparameters.model_validate({key: value})
        except ValidationError as error:
            rule = _rule(dict(error.errors()[0]))
            raise ValueError(f"{where} holds {_brief(value)}, which {rule}: change it") from None


def is_whole(hyperparameter: str) -> bool:
    """Report whether a hyperparameter takes whole numbers only."""
    return Hyperparameters.model_fields[hyperparameter].annotation is int


def is_text(hyperparameter: str) -> bool:
    """Report whether a hyperparameter is one of several words."""
    return get_origin(Hyperparameters.model_fields[hyperparameter].annotation) is Literal


# --- reading ---------------------------------------------------------------------------------------------------


# The plain values of YAML 1.2's core schema (specification 1.2.2, section 10.3.2), and the characters they begin with.
# PyYAML has those of YAML 1.1, where 010 is 8, 1:30 is 90, no is false, and 1e-4 is a text.
CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),  # of YAML 1.1 and in wide use: a mapping takes the keys of another
}


class _SpecLoader(yaml.SafeLoader):
    """A loader of safe YAML with the values of YAML 1.2, which refuses a key given twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # types-PyYAML: of instances

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                problem = f"the key {name!r} is given twice, remove one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        text: str = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_core_float(self, node: yaml.ScalarNode) -> float:
        text: str = self.construct_scalar(node)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SpecLoader.add_constructor("tag:yaml.org,2002:int", _SpecLoader.construct_core_int)
_SpecLoader.add_constructor("tag:yaml.org,2002:float", _SpecLoader.construct_core_float)


class _SpecDumper(yaml.SafeDumper):
    """A dumper that quotes a text that YAML 1.1 or 1.2 would read as something else, such as the names no and 1e4."""


for _yaml in (_SpecLoader, _SpecDumper):
    for _kind, (_pattern, _beginnings) in CORE_SCHEMA.items():
        _yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _beginnings)


MOST_SPEC_BYTES = 10**6


PACKAGED_SPECS = Path(__file__).parent / "specs"


def packaged_specs() -> list[str]:
    """Return the names of the specs that come with the package."""
    return sorted(file.stem for file in PACKAGED_SPECS.glob("*.yaml"))


def spec_file(spec: Path | str) -> Path:
    """Return the file of a spec: a path, or the name of a packaged spec where no file has that name."""
    path = Path(spec)
    packaged = PACKAGED_SPECS / f"{path}.yaml"
    return packaged if path.name == str(path) and not path.is_file() and packaged.is_file() else path


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a spec file and apply overrides such as `search.num_trials=50`. Raises SpecError.

    path: of a file, or the name of a packaged spec such as quickstart.
    """
    try:
        text = read_bounded(spec_file(path), MOST_SPEC_BYTES).decode("utf-8")
    except OSError as error:
        known = packaged_specs()
        raise SpecError(
            f"{path}: cannot be read ({error.strerror}): give the path of a job spec, or one of {', '.join(known)}"
            f"{_did_you_mean(str(path), known)}"
        ) from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: is not a text file in UTF-8: give the path of a job spec (YAML)") from None
    content = _parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise SpecError(f"{path}: must hold keys and values such as 'data: {{name: digits}}', not {_brief(content)}")
    for override in overrides:
        _apply_override(content, override)
    return parse_spec(content, str(path))


def parse_spec(content: Mapping[str, Any], source: str = "spec") -> JobSpec:
    """Check plain values and return them as a spec. Raises SpecError that lists every fault."""
    try:
        return JobSpec.model_validate(content)
    except ValidationError as error:
        faults = {_key_of(fault["loc"]): dict(fault) for fault in error.errors()}
        # pydantic also calls a list with a wrong entry too short; the fault of the entry is enough.
        keys = [key for key in faults if not any(other.startswith(f"{key}.") for other in faults)]
        raise SpecError("\n".join(f"{source}: {_explain(key, faults[key])}" for key in keys)) from None


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_SpecLoader)
    except Exception as error:  # PyYAML lets out KeyError for "!!bool x", AttributeError for "!!timestamp x" and more
        problem = " ".join(str(error).split()).replace(' in "<unicode string>",', " at") or type(error).__name__
        raise SpecError(f"{source}: is not valid YAML: {problem}: correct it there") from None


def _apply_override(content: dict[Any, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not all(key.split(".")):
        raise SpecError(f"--set {override!r}: must look like search.num_trials=50")
    *parents, last = key.split(".")
    part = content
    for depth, name in enumerate(parents, start=1):
        if not isinstance(part.get(name), dict):
            # Keys that other parts lack have defaults; a space is taken as it stands.
            is_space = parents[:depth] == ["search", "space"]
            part[name] = {key: each.model_dump() for key, each in _default_space().items()} if is_space else {}
        part = part[name]
    part[last] = _parse_yaml(text, f"--set {key}")


def _key_of(loc: tuple[int | str, ...]) -> str:
    """Return the key as a user writes it, without the kinds and types that pydantic adds below a dimension."""
    if loc[:2] == ("search", "space"):
        loc = loc[:3] + loc[4:6]
    return ".".join(map(str, loc))


def _explain(key: str, fault: Mapping[str, Any]) -> str:
    """Return one line for one of pydantic's faults: key, value, rule, remedy."""
    if fault["type"] == "value_error":  # ours: its text goes on from the key
        return ".".join(filter(None, [key, str(fault["ctx"]["error"])]))
    if key in REPLACED:
        return f"{key} {REPLACED[key]}"
    if fault["type"] == "extra_forbidden":
        return f"{key} is not a key of a job spec: remove it{_did_you_mean(key, _keys_and_parts())}"
    if fault["type"] == "missing":
        return f"{key} is missing: add it{_example(key)}"
    rule = _rule(fault) + (", or null for none" if _may_be_null(key) else "")
    return f"{key}: {_brief(fault['input'])} {rule}: {_remedy(fault)}{_example(key)}"


def _may_be_null(key: str) -> bool:
    part: Any = JobSpec
    *parents, last = key.split(".")
    for name in parents:
        annotation = part.model_fields[name].annotation if name in part.model_fields else None
        parts = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
        part = next((each for each in parts if issubclass(each, BaseModel)), BaseModel)
    return last in part.model_fields and type(None) in get_args(part.model_fields[last].annotation)


def _remedy(fault: Mapping[str, Any]) -> str:
    """Say what to write, also for a text that YAML 1.1, which older tools read, takes for a number or a truth."""
    text = str(fault["input"]) if isinstance(fault["input"], str) else ""
    if fault["type"].startswith("bool") and text.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f"write {str(text.lower() in ('yes', 'on', 'y')).lower()}"
    if fault["type"].startswith(("int", "float")):
        if clock := re.fullmatch(r"(\d{1,4}):(\d\d)", text):
            return f"write {int(clock[1]) + int(clock[2]) / 60:g}"
        if re.fullmatch(r"[-+]?\d[\d_]*(\.[\d_]*)?", text) and "_" in text:
            return f"write {text.replace('_', '')}"
    return "change it in the spec or with --set"


# Keys of earlier releases, with what to write now.
REPLACED = {
    "confirm": (
        "was replaced by a final round at the full budget, in which the recipe takes part: write "
        "'final: {top_k: 3, seeds: 2, num_epochs: null, keep_recipe_within_se: 1.0}', or 'final: null' for none"
    )
}

# Instead of pydantic's words where those are about Python.
RULES = {
    "model_type": "must hold keys and values",
    "dict_type": "must hold keys and values",
    "tuple_type": "must be a list",
    "too_short": "must have at least one entry",
    "string_type": "must be text, in quotes",
    "invalid_key": "must be text, in quotes",
}


def _rule(fault: Mapping[str, Any]) -> str:
    message: str = fault["msg"]
    return RULES.get(fault["type"], message.replace("Input should be", "must be").rstrip("."))


class _Brief(reprlib.Repr):
    """A short form of any value, however large, deep or recursive."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"  # repr(2**20000) raises


def _brief(value: Any) -> str:
    brief = _Brief()
    brief.maxstring = brief.maxother = 80
    return brief.repr(value)


def _keys_and_parts() -> list[str]:
    steps = [key.split(".") for key in spec_keys()]
    return sorted({".".join(some[:depth]) for some in steps for depth in range(1, len(some) + 1)})


def _did_you_mean(key: str, known: Sequence[str]) -> str:
    by_last = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1) or [
        by_last[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(by_last), n=1)
    ]
    return f" (did you mean {close[0]}?)" if close else ""


def _example(key: str) -> str:
    if key == "data.name":
        return f" (one of {', '.join(get_args(DataSetName))})"
    examples = [f"{name}={_as_yaml(value)}" for name, value in spec_keys().items() if f"{name}.".startswith(f"{key}.")]
    return f" (for example {examples[0]})" if examples else ""


def _as_yaml(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_SpecDumper, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...")


# --- dumping and comparing ---------------------------------------------------------------------------------------

# The keys that may change between two sessions of one run. All others define the results.
OPERATIONAL_KEYS = frozenset(
    {
        "name",
        "storage",
        "log_to",
        "data.dir",
        "max_hours",
        "max_failures",
        "autoscaling.cpus",
        "autoscaling.gpus",
        "search.cpus_per_trial",
        "search.gpus_per_trial",
        "search.max_concurrent_trials",
        "retrain.concurrent",
        "retrain.workers",
        "retrain.cpus_per_worker",
        "retrain.gpus_per_worker",
    }
)


def dump_spec(spec: JobSpec) -> str:
    """Return YAML that `load_spec` reads back as the same spec."""
    text: str = yaml.dump(spec.model_dump(mode="json"), Dumper=_SpecDumper, sort_keys=False)
    return text


def spec_keys() -> dict[str, Any]:
    """Return every key of a spec with its default value."""
    return flat_spec(JobSpec(data=Data(name="digits")))


def flat_spec(spec: JobSpec) -> dict[str, Any]:
    """Return every key, written as for `--set`, with its value."""
    return dict(_flatten(spec.model_dump(mode="json")))


def _flatten(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def refused_changes(recorded: JobSpec, asked: JobSpec) -> list[str]:
    """Return one line for each key of `asked` that would change the run's results; none if the run can go on.

    More trials only extend the search; fewer trials are a change.
    """
    old, new = flat_spec(recorded), flat_spec(asked)
    if asked.search.num_trials >= recorded.search.num_trials:
        new.pop("search.num_trials"), old.pop("search.num_trials")
    keys = [key for key in old | new if key not in OPERATIONAL_KEYS and old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)!r} in the run, {new.get(key)!r} now" for key in keys]
