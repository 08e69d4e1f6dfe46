"""How often is an answer of `mnist-ray predict` unsure, and are the others right? python -m experiments.unsure RUN...

Every run's model answers files with test images of MNIST and of scikit-learn's digits, and with digits and letters
of Pillow's own font. Prints a table in Markdown. The decision is docs/decisions/0021-unsure-answers.md.
"""

import argparse
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mnist_ray import RunDir, data
from mnist_ray.pipeline.prediction import SURE_FROM, AskedModel, Prediction, predict_images

NUM_IMAGES = 360  # of each test split: as many as the digits have
SIZES = (40, 80, 160)  # of the font, in pixels

Picture = tuple[Image.Image, str | None]  # with its class; None for what belongs to none


def pictures(data_dir: Path) -> Iterator[tuple[str, list[Picture]]]:
    for name in ("mnist", "digits"):
        test = data.load_test(name, data_dir)
        images, labels = test.images[:NUM_IMAGES, 0], test.labels[:NUM_IMAGES]
        yield (
            f"test images of {name}",
            [(Image.fromarray(image), str(label)) for image, label in zip(images, labels, strict=True)],
        )
    yield "printed digits", [(printed(letter, size), letter) for letter in string.digits for size in SIZES]
    yield "printed letters", [(printed(letter, size), None) for letter in string.ascii_letters for size in SIZES]


def printed(letter: str, size: int) -> Image.Image:
    picture = Image.new("L", (2 * size, 2 * size), 255)
    ImageDraw.Draw(picture).text((size // 2, size // 4), letter, fill=0, font=ImageFont.load_default(size))
    return picture


def row(run: RunDir, data_dir: Path, name: str, given: list[Picture]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.png" for number in range(len(given))]
        for path, (picture, _) in zip(paths, given, strict=True):
            picture.save(path)
        answers = predict_images(run, paths, data_dir)
    answered = [(each, label) for each, (_, label) in zip(answers, given, strict=True) if isinstance(each, Prediction)]
    sure = [(each, label) for each, label in answered if not each.is_unsure]
    right = sum(AskedModel.of(run).class_names[each.ranking[0]] == label for each, label in sure)
    counts = (
        len(given),
        len(given) - len(answered),
        sum(each.is_like_training_images is False for each, _ in answered),
        sum(each.probabilities.max() < SURE_FROM for each, _ in answered),
        len(sure),
        right,
    )
    return [name, *map(str, counts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of tested runs")
    parser.add_argument("--data-dir", type=Path, default=data.default_data_dir(), help="where MNIST lies")
    arguments = parser.parse_args()
    for folder in arguments.runs:
        run = RunDir(folder)
        print(f"\n{AskedModel.of(run)}\n")
        heading = [
            "pictures",
            "in all",
            "refused",
            "unlike",
            f"below {100 * SURE_FROM:.0f} %",
            "sure",
            "sure and right",
        ]
        rows = [row(run, arguments.data_dir, name, given) for name, given in pictures(arguments.data_dir)]
        for cells in (heading, ["---", *["---:"] * 6], *rows):
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
