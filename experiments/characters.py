"""A data set of 62 printed characters, made from the fonts of a Debian machine, for `data: {name: images}`.

apt-get install fonts-dejavu fonts-liberation fonts-freefont-ttf ...
python -m experiments.characters FOLDER
mnist-ray run quickstart --set data.name=images --set data.num_validation=null --data-dir FOLDER --name characters

FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png. Fonts of one family go to one part, so that the test has
fonts that training has not seen.
"""

import argparse
import hashlib
import string
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = Path("/usr/share/fonts")
SIDE = 28
LARGEST = 22  # points
NUM_VARIANTS = 3  # of each character in each font: moved, turned and of another size
TEST_PART = 5  # one family in so many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fonts", type=Path, default=FONTS, help="where .ttf and .otf files lie")
    arguments = parser.parse_args()
    families = found_families(arguments.fonts)
    if len(families) < 2:
        sys.exit(f"--fonts {arguments.fonts}: {len(families)} families of fonts, and two are needed: install some")
    written = {"train": 0, "test": 0}
    for number, (_, paths) in enumerate(sorted(families.items(), key=lambda item: _hash(item[0]))):
        part = "test" if number % TEST_PART == 0 else "train"
        for path in paths:
            for character, variant, image in drawn(path):
                place = arguments.folder / part / class_name(character)
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{path.stem}-{_hash(str(path))[:6]}-{variant}.png")
                written[part] += 1
    print(f"{len(families)} families, {sum(map(len, families.values()))} fonts: {written}")


def class_name(character: str) -> str:
    """Return the name of a character's folder; file systems may not tell `a` from `A`."""
    kind = "digit" if character.isdigit() else "upper" if character.isupper() else "lower"
    return f"{kind}-{character}"


def found_families(folder: Path) -> dict[str, list[Path]]:
    """Return the fonts that draw every character differently from a missing one, by family."""
    families = defaultdict(list)
    for path in sorted([*folder.rglob("*.ttf"), *folder.rglob("*.otf")]):
        try:
            font = ImageFont.truetype(path, LARGEST)
            family = font.getname()[0] or path.stem
            missing = bytes(font.getmask("\uffff"))
            masks = {bytes(font.getmask(character)) for character in CHARACTERS}
        except OSError:
            continue
        if missing not in masks and len(masks) > len(CHARACTERS) - 6:  # symbol fonts draw many alike
            families[family].append(path)
    return dict(families)


def drawn(path: Path) -> Iterator[tuple[str, int, Image.Image]]:
    """Draw each character of a font NUM_VARIANTS times, light on dark, 28x28."""
    random = np.random.default_rng(int(_hash(path.name)[:8], 16))
    for character in CHARACTERS:
        for variant in range(NUM_VARIANTS):
            font = ImageFont.truetype(path, int(random.integers(LARGEST - 6, LARGEST + 1)))
            image = Image.new("L", (SIDE, SIDE))
            place = (SIDE / 2 + random.uniform(-2, 2), SIDE / 2 + random.uniform(-2, 2))
            ImageDraw.Draw(image).text(place, character, fill=255, font=font, anchor="mm")
            yield character, variant, image.rotate(random.uniform(-8, 8), Image.Resampling.BILINEAR)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
