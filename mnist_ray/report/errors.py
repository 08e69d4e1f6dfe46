"""The errors of a report: by class, in pictures, and the images on which the two roles disagree."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from mnist_ray.record.predictions import Predictions, images_of_test
from mnist_ray.report.analysis.significance import wilson
from mnist_ray.report.formatting import counted, interval_in_percent, percent
from mnist_ray.report.review import Review
from mnist_ray.report.tables import Table

MOST_CLASSES = 60  # in the confusion matrix
MOST_LISTED = 20  # in the table of classes
MOST_PAIRS = 20
MOST_UNFOLDED = 24  # pictures in a gallery
MOST_IN_GALLERY = 120


@dataclass(frozen=True)
class Picture:
    """A test image with what stands beside it."""

    lines: tuple[str, str]
    alt: str
    source: str  # the image as a data address


@dataclass(frozen=True)
class Gallery:
    """Pictures, of which the first ones are shown and the others folded away."""

    title: str
    text: str
    pictures: list[Picture]

    @property
    def shown(self) -> list[Picture]:
        return self.pictures[:MOST_UNFOLDED]

    @property
    def folded(self) -> list[Picture]:
        return self.pictures[MOST_UNFOLDED:]


@dataclass(frozen=True)
class Errors:
    """The errors of the model that people take away."""

    text: str
    classes_title: str
    classes: Table
    pairs: Table | None  # the most confused ones, where there are too many classes for a matrix
    gallery: Gallery


def errors(review: Review) -> Errors | None:
    """Return the errors by class and a gallery, most confident first; None before the test."""
    model, found, images = review.model, review.predictions, images_of_test(review.run)
    if model is None or found is None or images is None:
        return None
    names = review.class_names
    wrong = [int(number) for number in np.flatnonzero(~found.is_right)]
    wrong.sort(key=lambda number: (-found.confidence[number], number))
    shown = [
        _missed(found, number, names, images.image(number), f"{100 * found.confidence[number]:.1f} %")
        for number in wrong[:MOST_IN_GALLERY]
    ]
    text = f"{len(shown):,} of {len(wrong):,}: true class → predicted class, and the model's confidence in it."
    num_wrong = np.bincount(found.labels[wrong], minlength=len(names))
    worst = np.argsort(-num_wrong, kind="stable").tolist() if len(names) > MOST_LISTED else range(len(names))
    of_many = f": the {MOST_LISTED} with most errors, of {len(names):,}" if len(names) > MOST_LISTED else ""
    return Errors(
        f"The model in model/, {model.training.id}, answers {len(wrong):,} of {len(found.labels):,} test images wrong.",
        f"Errors by class{of_many}",
        Table(
            ["class", "images", "wrong", "accuracy"],
            [_class_row(found, number, names[number]) for number in worst[:MOST_LISTED]],
        ),
        _confused_pairs(found, names) if len(names) > MOST_CLASSES else None,
        Gallery("Misclassified images, most confident first", text, shown),
    )


def _missed(
    found: Predictions, number: int, names: Sequence[str], image: npt.NDArray[np.uint8], remark: str
) -> Picture:
    label, predicted = names[found.labels[number]], names[found.predicted[number]]
    return Picture(
        (f"{label} → {predicted}", remark),
        f"Test image {number}: class {label}, taken for {predicted}, {remark}",
        _png(image),
    )


def _class_row(found: Predictions, number: int, name: str) -> list[str]:
    inside = found.labels == number
    total, wrong = int(inside.sum()), int((inside & ~found.is_right).sum())
    if not total:
        return [name, "0", "0", ""]
    interval = interval_in_percent(wilson(total - wrong, total))
    return [name, f"{total:,}", str(wrong), f"{percent(1 - wrong / total)} ({interval})"]


def _confused_pairs(found: Predictions, names: Sequence[str]) -> Table:
    counts = Counter(
        (int(found.labels[number]), int(found.predicted[number])) for number in np.flatnonzero(~found.is_right)
    )
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    rows = [[names[label], names[predicted], str(count)] for (label, predicted), count in ordered[:MOST_PAIRS]]
    return Table(["true class", "predicted class", "images"], rows)


def divided(review: Review) -> list[Gallery]:
    """Return the test images that one role alone answers right: a gallery for each role; none without two roles."""
    found, images = review.divided, images_of_test(review.run)
    if found is None or images is None:
        return []
    galleries = []
    for role in review.roles:
        numbers = found.alone_right(role.side)
        pictures = []
        for number in numbers[:MOST_UNFOLDED]:
            right = [f"{count[number]}/{seeds}" for count, seeds in zip(found.num_right, found.num_seeds, strict=True)]
            name = review.class_names[images.labels[number]]
            alt = f"Test image {number}: class {name}, right on {right[0]} seeds against {right[1]}"
            pictures.append(Picture((name, " : ".join(right)), alt, _png(images.image(number))))
        which = "" if len(pictures) == len(numbers) else f"The {len(pictures)} on which most seeds differ, of "
        text = f"{which}{counted(len(numbers), 'image')}." if numbers else "No image."
        galleries.append(Gallery(f"Only the {role.name} is right", text, pictures))
    return galleries


def _png(image: npt.NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
