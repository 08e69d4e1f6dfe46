"""The card that goes with the weights, in the form that model hubs read: what it is, how good, what it is not."""

from mnist_ray import __version__
from mnist_ray.record.rundir import RunDir
from mnist_ray.report.analysis.predictions import NUM_BINS, Predictions
from mnist_ray.report.review import Review
from mnist_ray.report.summary import interval_of, percent


def model_card(review: Review) -> str:
    """Markdown, of a run whose choice was tested."""
    spec, table = review.spec, review.table
    row = table[table["id"] == review.choice].to_dict("records")[0]
    started = review.run.stage("started") or {}
    return f"""\
---
license: mit
library_name: mnist_ray
pipeline_tag: image-classification
datasets: [{spec.data.name}]
metrics: [accuracy]
---

# A small convolutional classifier of {spec.data.name}

Weights of `{review.choice}`, in `model.safetensors`: 17,706 parameters, two convolutional blocks and a linear layer
(`mnist_ray.training.model.MnistCNN`, mnist_ray {__version__}). It takes 28x28 grey images as uint8, light on dark, and
normalises them itself. `mnist-ray predict IMAGE...` brings any image file into that form.

## How good it is

- Test split of {spec.data.name}, read once, after the choice: accuracy {100 * row["test_accuracy"]:.2f} %
  (Wilson 95 % interval {percent(interval_of(row))}, {row["test_correct"]:,} of
  {row["test_examples"]:,} right), mean cross-entropy {row["test_loss"]:.4f}.
{_calibration(review.choice_said)}
- {review.verdict.sentence}

The weights are those of the first retraining seed, whatever the test said of the others.

## How it was made

- Training data: {spec.data.name}, all {started["data"]["num_training"]:,} training images (SHA-256 of the content
  {started["data"]["training_sha256"][:16]}).
- Recipe: Adam, learning rate {row["learning_rate"]:.4g}, dropout {row["dropout"]:.4g}, global batch size
  {row["batch_size"]}, {row["epochs_done"]} epochs, seed {row["seed"]}, {row["workers"]} workers.
- Hyperparameters: {_origin(review.run)}

## What it is not

It has seen centred single digits of one size, light on dark, from one collection. Photographs, several digits, other
scripts and rotated digits are outside of what was measured; it says a class for any image, however little that image
looks like a digit, and its confidence is no warning there.
"""


def _calibration(said: Predictions | None) -> str:
    if said is None:
        return "- Calibration: not on record."
    return f"- Expected calibration error over {NUM_BINS} bins: {100 * said.calibration_error():.2f} %."


def _origin(run: RunDir) -> str:
    chosen = run.stage("chosen") or {}
    if chosen.get("training") is None:
        return "the recipe of the spec; nothing was searched."
    num_trials = len(run.trainings("search"))
    confirmed = " and confirmed on fresh seeds" if chosen.get("confirmed_score") is not None else ""
    return f"chosen among {num_trials} trials by the validation split{confirmed} ({chosen['training']})."
