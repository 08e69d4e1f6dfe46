"""The card that goes with the weights, in the form that model hubs read: their making, their quality, their limits."""

from jinja2 import Environment, StrictUndefined

from mnist_ray import __version__
from mnist_ray.data import OWN_IMAGES
from mnist_ray.record.models import RetrainedModel
from mnist_ray.record.predictions import NUM_BINS
from mnist_ray.record.tables import cell
from mnist_ray.report.analysis.significance import wilson
from mnist_ray.report.formatting import hyperparameters_in_words, interval_in_percent, percent
from mnist_ray.report.page import page_file
from mnist_ray.report.review import Review

NUM_SHARED, NUM_OF_A_CLASS = 9_696, 801  # parameters of the blocks, and of the linear layer for each class


def model_card(review: Review, model: RetrainedModel) -> str:
    """Return the card of a tested model as Markdown."""
    score = model.scores["test"]
    is_own = review.spec.data.name == OWN_IMAGES
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # Markdown is not escaped
    return environment.from_string(page_file("model_card.md.jinja")).render(
        version=__version__,
        data_name="the user's own images" if is_own else review.spec.data.name,
        is_own=is_own,
        classes=", ".join(cell("class", name) for name in review.class_names),
        num_parameters=NUM_SHARED + NUM_OF_A_CLASS * len(review.class_names),
        data=review.started.data,
        training=model.training,
        score=score,
        accuracy=percent(score.accuracy),
        interval=interval_in_percent(wilson(score.num_correct, score.num_examples)),
        calibration=(
            "Calibration: not on record."
            if review.predictions is None
            else f"Expected calibration error over {NUM_BINS} bins: {percent(review.predictions.calibration_error())}."
        ),
        verdict=review.verdict.sentence,
        hyperparameters=hyperparameters_in_words(model.training.config),
        source=_source(review),
    )


def _source(review: Review) -> str:
    """Say where the hyperparameters come from."""
    selected = review.state.selected
    if selected is None or selected.training is None:
        return "the baseline's, as the spec gives them; nothing was searched."
    num_trials = len(review.state.trainings("search"))
    confirmed = " and a final round on fresh seeds" if selected.final is not None else ""
    return f"selected among {num_trials} trials by the validation split{confirmed} ({selected.training})."
